"""Pure. Which web pages may call this server from a browser: the headers of the Fetch standard's CORS protocol."""

from collections.abc import Iterable

Headers = tuple[tuple[bytes, bytes], ...]

_EXPOSED = b"x-request-id, request-id, retry-after, retry-after-ms, x-busway-ignored-params, " + b", ".join(
    b"x-ratelimit-%b-%b" % (what, kind)
    for kind in (b"requests", b"tokens")
    for what in (b"limit", b"remaining", b"reset")
)
_MAX_AGE_S = 600


class Cors:
    """Allows origins, without cookies: what a page sends for itself is its key."""

    def __init__(self, origins: Iterable[str]) -> None:
        """`*` allows all."""
        self._origins = frozenset(origin.encode() for origin in origins)
        self.is_on = bool(self._origins)
        """Whether any origin is allowed."""

    def headers(self, origin: bytes) -> Headers:
        """Return the headers of an answer to a page of this origin; only `vary` for a page that may not read it."""
        vary = ((b"vary", b"origin"),)
        allowed = self._allowed(origin)
        if not allowed:
            return vary
        return ((b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _EXPOSED), *vary)

    def preflight(self, origin: bytes, methods: Iterable[str]) -> Headers:
        """Return what the answer to the question that browsers ask first has beside `headers`."""
        if not self._allowed(origin):
            return ()
        return (
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", b"*, authorization"),
            (b"access-control-max-age", b"%d" % _MAX_AGE_S),
        )

    def _allowed(self, origin: bytes) -> bytes:
        if b"*" in self._origins:
            return b"*"
        return origin if origin in self._origins else b""
