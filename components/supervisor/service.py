"""I/O. Starts the parts, keeps them alive, tells the person at the terminal what happens, and stops them in order."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from socket import gethostname

import anyio
from msgspec.structs import replace

from bus.config import Config
from bus.errors import BadConfig
from bus.lifecycle import serve
from bus.private import write_private
from bus.server import ServerFiles, free_port, prepare
from bus.server_config import Cluster
from bus.toml import render_toml
from components.supervisor.banner import ready_banner, start_line
from components.supervisor.errors import CannotStart
from components.supervisor.fleet import Fleet
from components.supervisor.plan import Part, plan_parts, plan_spare
from components.supervisor.policy import QUICK_DEATHS, Life, bury, describe_exit, is_hopeless
from components.supervisor.ports import is_free
from components.supervisor.probe import first_model, wait_until_ready
from components.supervisor.running import CONFIG_FILE, RunningSystem, hold

LOCALHOST = "127.0.0.1"
PROGRESS_S = 2.0
"""Between two signs of life while the system starts."""
EXTRA_GRACE_S = 5.0
"""Over a worker's own grace, before it is killed."""
SPARE_PAUSE_S = 3.0
"""Before the next spare starts, so that it does not take the CPU from the worker that has just been woken."""

Say = Callable[[str], None]


async def run_up(config: Config, say: Say) -> int:
    """Run the system until SIGTERM or Ctrl-C; raise `BadConfig` or `CannotStart` when it does not come up.

    `say` receives whole lines for the person at the terminal.
    """
    state_dir = Path(config.state_dir)
    with hold(state_dir):
        config = settle_ports(config)
        server, secrets = None, None
        if config.up.secure:
            from components.supervisor.secure import open_secrets, secure

            secrets = open_secrets(config)
            config = secure(config, secrets)
        if config.up.with_nats:
            guard = secrets.guard if secrets else None
            server = prepare(
                config.state_dir,
                host=config.up.nats_host,
                port=config.up.nats_port,
                guard=guard,
                cluster=_cluster(config),
            )
            if config.up.nats_port not in (0, server.port):
                say(f"port {config.up.nats_port} is taken: the broker listens on {server.port}")
            config = _with_broker(config, server)
        config_file = _write_files(config, state_dir)
        system = RunningSystem(
            namespace=config.namespace,
            url=f"{'https' if config.frontend.tls_cert else 'http'}://{_reachable(config.frontend.host)}:{config.frontend.port}",
            nats_url=config.bus.url,
            pid=os.getpid(),
            credentials_file=str(secrets.operator_file) if secrets else "",
            tls_ca=secrets.guard.tls_ca if secrets else "",
        )
        parts = plan_parts(config, config_file, tuple(server.command) if server else None)
        say(start_line(config))
        await serve(Supervisor(config, parts, plan_spare(config, config_file), Fleet(system, state_dir, secrets), say))
    return 0


def _write_files(config: Config, state_dir: Path) -> Path:
    """Put the last run's logs aside and write the children's configuration; return its path."""
    logs = state_dir / "logs"
    logs.mkdir(exist_ok=True)
    for log in logs.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
    return write_private(state_dir / CONFIG_FILE, render_toml(config))


class Supervisor:
    """Keeps the parts of one system alive for as long as `run` runs."""

    def __init__(self, config: Config, parts: list[Part], spare: Part | None, fleet: Fleet, say: Say) -> None:
        self._config = config
        self._parts = parts
        self._spare = spare
        self._fleet = fleet
        self._say = say
        self._stopping = anyio.Event()
        self._ready = anyio.Event()
        self._failure: CannotStart | None = None

    def stop(self) -> None:
        """Stop all parts in order; `run` returns when they have ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep the system up until `stop`; raise `CannotStart` if it does not come up. Leaves no process behind."""
        try:
            async with anyio.create_task_group() as until_the_end:
                if self._config.up.secure:
                    until_the_end.start_soon(self._renew_credentials)
                async with anyio.create_task_group() as tasks:
                    for part in self._parts:
                        tasks.start_soon(self._keep, part)
                    if self._spare is not None:
                        tasks.start_soon(self._keep_spare, self._spare)
                    tasks.start_soon(self._announce)
                    tasks.start_soon(self._tell_progress)
                    await self._stopping.wait()
                    tasks.cancel_scope.cancel()
                if self._failure is None:
                    self._say("stopping: what runs is finished first (Ctrl-C again stops at once)")
                for name in await self._fleet.stop(self._config.worker.grace_s + EXTRA_GRACE_S):
                    self._say(f"{name} did not stop in time and was killed")
                until_the_end.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            self._say("stopped at once: what ran was cut off")
            raise
        finally:
            self._fleet.kill()
        if self._failure is not None:
            raise self._failure
        self._say("stopped")

    async def _keep(self, part: Part) -> None:
        """Start a part, and start it again whenever it ends."""
        life = Life()
        while True:
            process = await self._fleet.start(part)
            exit_code = await process.wait()
            self._fleet.forget(part, process)
            life, pause_s = bury(life, process.lived_s)
            ending = f"{part.name} ended after {process.lived_s:.1f} s ({describe_exit(exit_code)})"
            if is_hopeless(life, exit_code, self._ready.is_set()):
                self._fail(part, ending)
                return
            if life.quick_deaths == QUICK_DEATHS:
                ending += f" and keeps doing so; log: {self._fleet.log_path(part)}\n{self._fleet.last_words(part)}\n"
            self._say(f"{ending}: starting it again" + (f" in {pause_s:.1f} s" if pause_s else ""))
            await anyio.sleep(pause_s)

    async def _keep_spare(self, part: Part) -> None:
        """Once the system serves, hold a worker ready that has only to load the model."""
        await self._ready.wait()
        while True:
            process = await self._fleet.start(part)
            await process.wait_taken_or_ended()
            self._fleet.forget(part, process)
            await anyio.sleep(SPARE_PAUSE_S)

    async def _announce(self) -> None:
        started = time.monotonic()
        host = _reachable(self._config.frontend.host)
        port, is_tls = self._config.frontend.port, bool(self._config.frontend.tls_cert)
        await wait_until_ready(host, port, is_tls=is_tls, num_frontends=self._config.up.frontends)
        model = await first_model(host, port, is_tls=is_tls)
        self._ready.set()
        took_s = time.monotonic() - started
        self._say(ready_banner(self._fleet.system, model, took_s, Path(self._config.state_dir)))

    async def _tell_progress(self) -> None:
        started = time.monotonic()
        while not self._ready.is_set():
            with anyio.move_on_after(PROGRESS_S):
                await self._ready.wait()
                return
            waited_s = time.monotonic() - started
            self._say(f"  {waited_s:.0f} s: loading {self._config.worker.model} ({self._config.worker.engine})")

    async def _renew_credentials(self) -> None:
        """Replace credentials long before they end: whoever's connection is cut then has new ones."""
        while True:
            await anyio.sleep(self._config.up.credentials_s / 3)
            try:
                self._fleet.renew_credentials()
            except (BadConfig, OSError) as error:
                self._say(f"credentials were not renewed: {error}")

    def _fail(self, part: Part, ending: str) -> None:
        self._failure = CannotStart(
            f"{ending} before the system was ready; its last words:\n{self._fleet.last_words(part)}",
            f"busway doctor   (whole log: {self._fleet.log_path(part)})",
        )
        self.stop()


def settle_ports(config: Config) -> Config:
    """Return the configuration with a port for the frontends; raise `CannotStart` when one is taken."""
    host = config.frontend.host
    port = config.frontend.port or free_port()
    config = replace(config, frontend=replace(config.frontend, port=port))
    if not is_free(host, port):
        raise CannotStart(f"port {port} of {host} is taken by another program", f"busway up --port {port + 10}")
    return config


def _with_broker(config: Config, server: ServerFiles) -> Config:
    return replace(
        config,
        up=replace(config.up, nats_port=server.port),
        bus=replace(config.bus, url=server.url, monitor_url=server.monitor_url),
    )


def _cluster(config: Config) -> Cluster | None:
    """Return what makes the broker one of several; its name must be the same at each start, and unlike any other."""
    if not config.up.peers:
        return None
    port = config.up.route_port
    return Cluster(name=f"{gethostname()}-{port}", host=config.up.nats_host, port=port, routes=config.up.peers)


def _reachable(host: str) -> str:
    """Return an address to reach a server at that listens on `host`."""
    return {"0.0.0.0": LOCALHOST, "::": "[::1]"}.get(host, host)
