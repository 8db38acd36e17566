"""I/O. The HTTP door: requests answered by a table of routes."""

import math
import time
from collections.abc import Iterable

import anyio
import structlog

from bus.metrics import FRONTEND_REQUESTS
from frontend.anthropic.errors import anthropic_envelope, to_anthropic
from frontend.auth.cors import Cors
from frontend.auth.identity import caller
from frontend.auth.keys import Keys, key_of
from frontend.doors.call import JSON, Call, Reply, header_lines, processing_line
from frontend.doors.exchange import Exchange
from frontend.doors.ids import make_ids
from frontend.doors.routes import Family, Route, Router
from frontend.errors import BodyTooLarge, MethodNotAllowed, answer_for, envelope

LINGER_S = 1.0
"""Time for which the rest of a refused body is read and dropped, so that the client gets to read its answer."""
CLIENT_GONE = 499

log = structlog.get_logger()


class HttpDoor:
    """Answers requests."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        keys: Keys | None = None,
        open_paths: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """With `keys`, all paths but `open_paths` need one; web pages of `origins` may call."""
        self._router = Router(routes)
        self._keys = keys
        self._open_paths = frozenset(open_paths)
        self._cors = Cors(origins)
        self._ids = make_ids()

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request. Raises nothing: what fails is an answer too."""
        call = Call(exchange, next(self._ids), time.monotonic())
        endpoint, status = "other", CLIENT_GONE
        try:
            if self._cors.is_on:
                self._allow_origin(call)
            reply = self._preflight(call) if exchange.method == "OPTIONS" else None
            if reply is None:
                route, params = self._router.find(exchange.path, exchange.method)
                endpoint = route.pattern
                if params:
                    call.params = params
                if self._keys is not None:
                    self._identify(call, self._keys)
                reply = await route.handler(call)
        except Exception as error:
            family = "anthropic" if call.is_anthropic else self._router.family_of(exchange.path)
            reply = _error_reply(call, error, family)
            if reply.status == 500:
                log.error("request.crashed", request_id=call.request_id, endpoint=endpoint, exc_info=error)
            if not exchange.is_lost:
                status = reply.status
                if isinstance(error, BodyTooLarge):
                    await _send_and_linger(call, reply)
                else:
                    _send(call, reply)
        else:
            if exchange.is_finished:
                status = 200
            elif reply is not None and not exchange.is_lost:
                status = reply.status
                _send(call, reply)
        FRONTEND_REQUESTS.counts[endpoint, str(status)] += 1

    def _identify(self, call: Call, keys: Keys) -> None:
        """Make the caller known to this task; raise `InvalidKey`, `RateLimited`."""
        if call.exchange.path in self._open_paths:
            return
        identity = keys.identify(key_of(call.exchange.headers))
        caller.set(identity)
        if identity.account is not None:
            account, given = identity.account, call.exchange.late_headers
            call.exchange.late_headers = lambda: (
                *(given() if given is not None else ()),
                *account.headers(time.monotonic()),
            )

    def _preflight(self, call: Call) -> Reply | None:
        """Answer OPTIONS: what methods a path has, and whether a web page may use them."""
        allow = self._router.methods_of(call.exchange.path)
        if not allow:
            return None
        origin = call.find_header(b"origin")
        return Reply(b"", 204, ((b"allow", ", ".join(allow).encode()), *self._cors.preflight(origin, allow)))

    def _allow_origin(self, call: Call) -> None:
        headers = self._cors.headers(call.find_header(b"origin"))
        call.exchange.late_headers = lambda: headers


def _error_reply(call: Call, error: Exception, family: Family) -> Reply:
    answer = answer_for(error)
    headers = JSON
    if family == "anthropic":
        answer = to_anthropic(answer)
        headers += ((b"request-id", call.shown_id),)
    if answer.retry_after_s is not None:
        headers += ((b"retry-after", str(answer.retry_after_s).encode()),)
        delay_s = getattr(error, "delay_s", None)
        if delay_s is not None:
            headers += ((b"retry-after-ms", str(math.ceil(delay_s * 1000)).encode()),)
    if answer.status == 401:
        headers += ((b"www-authenticate", b'Bearer realm="busway"'),)
    if isinstance(error, MethodNotAllowed):
        headers += ((b"allow", error.allow.encode()),)
    if family == "anthropic":
        return Reply(anthropic_envelope(answer.error, call.shown_id.decode()), answer.status, headers)
    return Reply(envelope(answer.error), answer.status, headers)


def _send(call: Call, reply: Reply) -> None:
    call.exchange.respond(reply.status, _lines(call, reply), reply.body)


def _lines(call: Call, reply: Reply) -> bytes:
    return header_lines((*reply.headers, (b"x-request-id", call.shown_id))) + processing_line(call.arrived_at)


async def _send_and_linger(call: Call, reply: Reply) -> None:
    """Send the reply, and read for a while what the client still sends before the connection closes."""
    exchange = call.exchange
    exchange.keeps_alive = False
    exchange.write_whole(reply.status, _lines(call, reply), reply.body)
    with anyio.move_on_after(LINGER_S):
        while await exchange.receive():
            pass
    exchange.finish()
