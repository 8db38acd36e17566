"""I/O. The pick doors: a gateway asks which worker would be the best for a prompt, over NATS or HTTP."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, cast

import anyio
import msgspec
import uvicorn

from bus.config import RouterConfig
from bus.errors import BadConfig, BuswayError, Malformed
from bus.metrics import ROUTER_PICKS
from bus.protocol import Bus
from bus.service import Call, Endpoint, Service, run_service
from bus.subjects import slug
from bus.version import VERSION
from components.router.desk import Desk
from components.router.question import MAX_BODY_BYTES, answer, read_question

Find = Callable[[str], Desk | None]
Message = MutableMapping[str, Any]

STATUS = {"malformed": 400, "invalid_request": 400, "model_not_found": 404, "no_worker": 503}
_answered = ROUTER_PICKS.labels("answered")


@asynccontextmanager
async def serve_picks(bus: Bus, config: RouterConfig, find: Find) -> AsyncIterator[None]:
    """Answer while the context is open: on `pick.v1.{model}`, shared by all routers, and on `pick_port`.

    Raises `BadConfig` when the port is taken.
    """
    service = Service(
        name="busway-pick",
        version=VERSION,
        description="which worker would be the best for a prompt",
        endpoints=[
            Endpoint(name="pick", subject=bus.subjects.pick("*"), handler=lambda call: _on_call(bus, find, call))
        ],
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(run_service(bus, service))
        if config.pick_port:
            await stack.enter_async_context(_serve_http(config, find))
        yield


def ask(find: Find, model: str, body: bytes) -> bytes:
    """Answer one question about a model (by slug), in JSON; raise `BuswayError`."""
    try:
        question = read_question(body)
        desk = find(model or slug(question.model))
        reply = answer(question, None if desk is None else desk.pool, anyio.current_time())
    except BuswayError as error:
        ROUTER_PICKS.labels("no_worker" if error.code == "no_worker" else "malformed").inc()
        raise
    _answered.inc()
    if question.reserve and desk is not None:
        desk.work()
    return msgspec.json.encode(reply)


def _on_call(bus: Bus, find: Find, call: Call) -> None:
    model = bus.subjects.parse(call.subject).fields[0]
    try:
        call.respond(ask(find, model, call.payload))
    except BuswayError as error:
        call.fail(error.code, str(error), _error(error))
    call.finish()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `bus.lifecycle` has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@asynccontextmanager
async def _serve_http(config: RouterConfig, find: Find) -> AsyncIterator[None]:
    async def app(scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        status, body = await _respond(find, scope, receive)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with _listen(config.pick_host, config.pick_port) as listener:
        server = _Server(
            uvicorn.Config(
                cast("Any", app),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                limit_concurrency=256,
                timeout_graceful_shutdown=1,
            )
        )
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_run_server, server, listener)
            try:
                yield
            except Exception as error:
                # Kept, not raised: a task group would wrap it, and callers look for its class.
                failure = error
            finally:
                server.should_exit = True
        if failure is not None:
            raise failure


async def _run_server(server: _Server, listener: socket.socket) -> None:
    """Serve until `should_exit`: uvicorn does not bear to be cancelled while it shuts down, which takes 1 s at most."""
    with anyio.CancelScope(shield=True):
        await server.serve([listener])


async def _respond(find: Find, scope: Message, receive: Callable[[], Any]) -> tuple[int, bytes]:
    if scope["path"] != "/v1/pick":
        return 404, _error(Malformed(f"no such path {scope['path'][:80]}: POST /v1/pick"))
    if scope["method"] != "POST":
        return 405, _error(Malformed("only POST is answered here"))
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return 400, b""
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return 413, _error(Malformed(f"the body is longer than {MAX_BODY_BYTES} bytes"))
        if not message.get("more_body"):
            break
    try:
        return 200, ask(find, "", bytes(body))
    except BuswayError as error:
        return STATUS.get(error.code, 500), _error(error)


def _error(error: BuswayError) -> bytes:
    return msgspec.json.encode({"error": {"code": error.code, "message": str(error)}})


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise BadConfig(
            f"the pick door cannot listen on {host}:{port}: {error.strerror or error}; choose another router.pick_port"
        ) from error
    listener.setblocking(False)
    return listener
