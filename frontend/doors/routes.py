"""Pure. Which handler answers which path: a table, with `{name}` for segments that vary."""

import difflib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NamedTuple

from frontend.doors.call import Call, Reply
from frontend.errors import MethodNotAllowed, NoSuchRoute

Family = Literal["openai", "anthropic", "plain"]
"""Whose shape errors have; `plain` is OpenAI's too, on paths that need no key."""

Handler = Callable[[Call], Awaitable[Reply | None]]
"""Returns None when the response went out by the exchange, or when the client is gone."""


class Doc(NamedTuple):
    """What `/openapi.json` says of a route beside its handler's docstring. Types are msgspec structs."""

    body: Any = None
    """JSON that it takes; None: nothing."""
    answer: Any = None
    """JSON that it answers; None: said in words by `media`."""
    event: Any = None
    """Data of server-sent events, where it streams."""
    media: str = "application/json"
    status: int = 200
    query: tuple[str, ...] = ()
    """Names of query parameters, all of them optional strings."""
    form: tuple[str, ...] = ()
    """Fields of multipart/form-data, where it takes that; `file` is bytes."""


NO_DOC = Doc()


class Route(NamedTuple):
    """One method of one path. `{name}` matches one segment, `{name...}` the rest of the path."""

    method: str
    pattern: str
    handler: Handler
    family: Family = "openai"
    doc: Doc = NO_DOC


_NO_PARAMS: dict[str, str] = {}


class Router:
    """Finds routes: fixed paths by one look-up, others segment by segment."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._fixed: dict[str, dict[str, Route]] = {}
        self._varying: dict[str, dict[str, Route]] = {}
        """By pattern, the most specific first."""
        for route in sorted(self.routes, key=lambda route: _rank(route.pattern)):
            table = self._varying if "{" in route.pattern else self._fixed
            table.setdefault(route.pattern, {})[route.method] = route

    def find(self, path: str, method: str) -> tuple[Route, dict[str, str]]:
        """Return the route of a request (HEAD is answered as GET) and what its varying segments are in the path.

        Raises `NoSuchRoute` or `MethodNotAllowed`.
        """
        methods = self._fixed.get(path)
        params = _NO_PARAMS
        if methods is None:
            for pattern, candidates in self._varying.items():
                matched = _match(pattern, path)
                if matched is not None:
                    methods, params = candidates, matched
                    break
            else:
                raise NoSuchRoute(f"There is no {path[:200]!r} here. {self._suggest(path)}")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"{path[:200]} takes {allow}, not {method[:20]}.", allow=allow)
        return route, params

    def methods_of(self, path: str) -> list[str]:
        """Return the methods that a path takes, none where there is no such path."""
        methods = self._table_of(path)
        return [*methods, *(["HEAD"] if "GET" in methods else []), *(["OPTIONS"] if methods else [])]

    def family_of(self, path: str) -> Family:
        """Return whose shape an error on this path has, also where there is no such path or method."""
        methods = self._table_of(path)
        return next((route.family for route in methods.values()), "openai")

    def _table_of(self, path: str) -> dict[str, Route]:
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        return next((table for pattern, table in self._varying.items() if _match(pattern, path) is not None), {})

    def _suggest(self, path: str) -> str:
        known = [*self._fixed, *self._varying]
        close = difflib.get_close_matches(path[:200], known, n=1, cutoff=0.8)
        listed = "GET /openapi.json lists what there is, /docs shows it."
        return f"Did you mean {close[0]}? {listed}" if close else listed


def _rank(pattern: str) -> tuple[int, int]:
    return pattern.count("{"), -len(pattern)


def _match(pattern: str, path: str) -> dict[str, str] | None:
    """Return the varying segments of a path, None where it does not fit."""
    wanted, given = pattern.split("/"), path.split("/")
    params: dict[str, str] = {}
    for position, segment in enumerate(wanted):
        if position >= len(given):
            return None
        if segment.endswith("...}"):
            params[segment[1:-4]] = "/".join(given[position:])
            return params if params[segment[1:-4]] else None
        if segment.startswith("{"):
            if not given[position]:
                return None
            params[segment[1:-1]] = given[position]
        elif segment != given[position]:
            return None
    return params if len(given) == len(wanted) else None
