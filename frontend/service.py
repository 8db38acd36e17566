"""I/O. The frontend process: bus, registry card, doors, and how it starts and stops."""

import functools
import os
import socket
import ssl
import time
from typing import Any, cast

import anyio
import structlog
import uvicorn

from bus.access import process_name
from bus.config import Config, FrontendConfig
from bus.connection import open_bus
from bus.errors import BadConfig
from bus.lifecycle import serve, spare_living
from bus.messages.fleet import FrontendCard
from bus.protocol import Bus
from bus.registry import keep_card
from bus.scrape import answer_scrapes
from bus.subjects import Subjects
from bus.version import VERSION
from frontend.auth.keys import open_keys
from frontend.auth.sharing import share_use
from frontend.batch.runner import BatchRunner
from frontend.batch.slots import Slots
from frontend.batch.store import Batches
from frontend.batch.work import Work
from frontend.books import Books
from frontend.dispatch import Dispatcher
from frontend.doors.anthropic import Anthropic
from frontend.doors.batches import BatchDoor
from frontend.doors.connection import Connection, HttpLimits
from frontend.doors.docs import Docs
from frontend.doors.embeddings import Embeddings
from frontend.doors.explain import Explain
from frontend.doors.files import FileDoor
from frontend.doors.generate import Generate
from frontend.doors.http import HttpDoor
from frontend.doors.nats import NatsDoor
from frontend.doors.responses import Responses
from frontend.doors.server import BACKLOG, Server, listen
from frontend.doors.status import Status
from frontend.doors.tokens import Tokens
from frontend.files import Files
from frontend.fleet import Fleet
from frontend.intake import Intake
from frontend.models import Models
from frontend.usage import UsagePublisher

LISTENS_WITHIN_S = 5.0
"""A frontend among others on its port takes connections once it can serve, or says after this time why it cannot."""
LATECOMERS_S = 0.25
"""From the last connection that is taken to the first request that is refused: who has connected may ask."""
GRACE_S = 30
"""Time that responses have to end after the first signal."""
USAGE_GRACE_S = 2.0

log = structlog.get_logger()


async def run_frontend(config: Config) -> None:
    """Serve until a signal says stop; raise `BadConfig` for a port that is taken, `BusUnavailable` without a broker."""
    frontend = process_name(config.bus, "frontend")
    check_tls(config.frontend)
    door = config.frontend
    with listen(door.host, door.port, shares_port=door.shares_port) as listener:
        async with open_bus(config.bus, Subjects(config.namespace), name=frontend) as bus:
            await bus.ensure()
            with answer_scrapes(bus, frontend):
                await serve(Frontend(bus, frontend, config.frontend, listener))


class Frontend:
    """One frontend on a bus that is open and a socket that has its port."""

    def __init__(self, bus: Bus, name: str, config: FrontendConfig, listener: socket.socket) -> None:
        self._bus = bus
        self.name = name
        self._config = config
        self._listener = listener
        self._stopping = anyio.Event()
        host, port = listener.getsockname()[:2]
        scheme = "https" if config.tls_cert else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def stop(self) -> None:
        """Take nothing new, finish what there is."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until stopped and drained, and at most `GRACE_S` after being stopped."""
        usage = UsagePublisher(self._bus)
        async with (
            open_keys(self._bus, self._config.keys) as keys,
            keep_card(self._bus, f"frontend.{self.name}", self._card()),
            anyio.create_task_group() as publishing,
        ):
            publishing.start_soon(usage.run)
            async with anyio.create_task_group() as tasks:
                fleet = Fleet(self._config.worker_timeout_s)
                models = Models(self._bus, fleet, config=self._config)
                dispatcher = Dispatcher(
                    self._bus, self.name, self._config, fleet=fleet, books=Books(usage), tasks=tasks
                )
                tasks.start_soon(dispatcher.run)
                tasks.start_soon(models.run)
                if keys is not None:
                    tasks.start_soon(share_use, self._bus, self.name, keys)
                intake = Intake(self._config, models, dispatcher)
                status = Status(self._bus, models)
                generate = Generate(intake)
                responses = Responses(self._bus, self.name, intake, generate)
                embeddings = Embeddings(intake)
                files, batches = Files(self._bus), Batches(self._bus)
                work = Work(intake, generate, embeddings)
                runner = BatchRunner(self._bus, batches, files, work, Slots(dispatcher, fleet))
                routes = [
                    *generate.routes(),
                    *responses.routes(),
                    *Anthropic(intake, generate).routes(),
                    *Tokens(intake).routes(),
                    *embeddings.routes(),
                    *FileDoor(files).routes(),
                    *BatchDoor(intake, batches, files).routes(),
                    *Explain(self._bus, intake, fleet).routes(),
                    *status.routes(),
                ]
                http = HttpDoor(
                    [*routes, *Docs(routes).routes()],
                    keys=keys,
                    open_paths=self._config.open_paths,
                    origins=self._config.cors_origins,
                )
                await self._open_doors(intake, http, status, responses, runner)
                tasks.cancel_scope.cancel()
            usage.close()
            publishing.cancel_scope.deadline = anyio.current_time() + USAGE_GRACE_S

    async def _open_doors(
        self, intake: Intake, http: HttpDoor, status: Status, responses: Responses, runner: BatchRunner
    ) -> None:
        server = Server(self._server_config(http), self._on_started)
        async with anyio.create_task_group() as doors:
            doors.start_soon(NatsDoor(self._bus, intake).run, self._stopping)
            doors.start_soon(responses.run, self._stopping)
            doors.start_soon(runner.run, self._stopping)
            doors.start_soon(self._drain_when_stopped, intake, status, server)
            if self._config.shares_port:
                with anyio.move_on_after(LISTENS_WITHIN_S):
                    await intake.models.wait_ready()
            await server.serve([self._listener])
            doors.cancel_scope.deadline = anyio.current_time() + GRACE_S

    async def _drain_when_stopped(self, intake: Intake, status: Status, server: Server) -> None:
        await self._stopping.wait()
        log.info("frontend.draining", num_requests=len(intake.dispatcher.requests))
        status.is_draining = True
        await server.stop_listening(self._listener)
        await anyio.sleep(LATECOMERS_S)
        intake.dispatcher.is_draining = True
        server.should_exit = True

    def _server_config(self, door: HttpDoor) -> uvicorn.Config:
        limits = HttpLimits(
            header_bytes=self._config.max_header_bytes,
            slow_client_bytes=self._config.slow_client_bytes,
            connections=self._config.max_connections,
        )
        return uvicorn.Config(
            cast("Any", door.answer),  # uvicorn asks for one; who calls it is the protocol
            http=cast("Any", functools.partial(Connection, limits=limits, handle=door.answer)),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=self._config.tls_cert or None,
            ssl_keyfile=self._config.tls_key or None,
        )

    def _on_started(self) -> None:
        spare_living()
        log.info("frontend.started", url=self.url, frontend=self.name)

    def _card(self) -> FrontendCard:
        return FrontendCard(
            frontend=self.name,
            url=self.url,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            started_at=time.time(),
        )


def check_tls(config: FrontendConfig) -> None:
    """Raise `BadConfig` for a certificate and key that no server can be started with."""
    if not config.tls_cert and not config.tls_key:
        return
    if not config.tls_cert or not config.tls_key:
        raise BadConfig("frontend.tls_cert and frontend.tls_key belong together: give both or none.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"cannot use frontend.tls_cert and frontend.tls_key as PEM files: {error}") from error
