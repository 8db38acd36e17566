"""I/O. The HTTP door: an ASGI application with OpenAI's endpoints, health and metrics."""

import secrets
from collections.abc import Awaitable, Callable
from functools import cache

import anyio
import msgspec
import structlog
from prometheus_client import Counter

from bus.errors import UnknownModel
from bus.metrics import CONTENT_TYPE, FRONTEND_REQUESTS, render
from frontend.doors.call import JSON, Call, Receive, Reply, Scope, Send, header_lines, make_call
from frontend.doors.generate import Generate
from frontend.errors import BodyTooLarge, MethodNotAllowed, NoSuchRoute, answer_for, envelope
from frontend.model import ServedModel
from frontend.models import Models
from frontend.openai.answers import model_body, model_list

LINGER_S = 1.0
"""Time for which the rest of a refused body is read and dropped, so that the client gets to read its answer."""
CLIENT_GONE = 499
_MODEL_PATH = "/v1/models/"

Handler = Callable[[Call], Awaitable[Reply | None]]
"""Returns None when the response went out by the exchange, or when the client is gone."""

log = structlog.get_logger()


class HttpDoor:
    """The application. Routes are a table: path to method to handler."""

    def __init__(self, models: Models, generate: Generate) -> None:
        self._models = models
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": generate.chat},
            "/v1/completions": {"POST": generate.complete},
            "/v1/models": {"GET": self._list_models},
            "/live": {"GET": self._live},
            "/ready": {"GET": self._ready},
            "/health": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
        }
        self._show_routes: dict[str, Handler] = {"GET": self._show_model}
        self.is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises nothing: what fails is an answer too."""
        call = make_call(scope, receive, send, secrets.token_hex(16))
        endpoint, status = "other", CLIENT_GONE
        try:
            endpoint, handler = self._find_route(scope["path"], scope["method"])
            reply = await handler(call)
        except Exception as error:
            reply = _error_reply(error)
            if reply.status == 500:
                log.error("request.crashed", request_id=call.request_id, endpoint=endpoint, exc_info=error)
            if not call.exchange.is_lost:
                status = reply.status
                if isinstance(error, BodyTooLarge):
                    await _send_and_linger(call, reply)
                else:
                    _send(call, reply)
        else:
            if call.exchange.is_finished:
                status = 200
            elif reply is not None and not call.exchange.is_lost:
                status = reply.status
                _send(call, reply)
        _count(endpoint, status).inc()

    def _find_route(self, path: str, method: str) -> tuple[str, Handler]:
        methods = self._routes.get(path)
        if methods is None and path.startswith(_MODEL_PATH):
            path, methods = f"{_MODEL_PATH}{{id}}", self._show_routes
        if methods is None:
            raise NoSuchRoute(f"There is no {path[:200]!r} here. Known paths: {', '.join(self._routes)}.")
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"{path} takes {allow}, not {method[:20]}.", allow=allow)
        return path, handler

    async def _list_models(self, call: Call) -> Reply:
        return Reply(model_list([_show(model) for model in self._models.listed()]))

    async def _show_model(self, call: Call) -> Reply:
        name = call.scope["path"].removeprefix(_MODEL_PATH)
        for model in self._models.listed():
            if model.name == name:
                return Reply(_show(model))
        raise UnknownModel(self._models.describe_unknown(name))

    async def _live(self, call: Call) -> Reply:
        return Reply(b'{"status":"live"}')

    async def _ready(self, call: Call) -> Reply:
        """Say whether a request would be served now, and if not, why."""
        reason = "this frontend is shutting down" if self.is_draining else self._models.describe_unready()
        if reason:
            return Reply(
                msgspec.json.encode({"status": "not ready", "reason": reason}), 503, (*JSON, (b"retry-after", b"1"))
            )
        return Reply(b'{"status":"ready"}')

    async def _metrics(self, call: Call) -> Reply:
        return Reply(render(), headers=((b"content-type", CONTENT_TYPE.encode()),))


@cache
def _count(endpoint: str, status: int) -> Counter:
    return FRONTEND_REQUESTS.labels(endpoint=endpoint, status=str(status))


def _show(model: ServedModel) -> bytes:
    return model_body(model.name, int(model.created_at), model.max_model_len)


def _error_reply(error: Exception) -> Reply:
    answer = answer_for(error)
    headers = JSON
    if answer.retry_after_s is not None:
        headers += ((b"retry-after", str(answer.retry_after_s).encode()),)
    if isinstance(error, MethodNotAllowed):
        headers += ((b"allow", error.allow.encode()),)
    return Reply(envelope(answer.error), answer.status, headers)


def _send(call: Call, reply: Reply) -> None:
    call.exchange.respond(reply.status, header_lines((*reply.headers, (b"x-request-id", call.shown_id))), reply.body)


async def _send_and_linger(call: Call, reply: Reply) -> None:
    """Send the reply, and read for a while what the client still sends before the connection closes."""
    length = (b"content-length", str(len(reply.body)).encode())
    headers = [*reply.headers, length, (b"connection", b"close"), (b"x-request-id", call.shown_id)]
    await call.send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await call.send({"type": "http.response.body", "body": reply.body, "more_body": True})
    with anyio.move_on_after(LINGER_S):
        while (message := await call.receive())["type"] == "http.request" and message["more_body"]:
            pass
    await call.send({"type": "http.response.body", "body": b"", "more_body": False})
