"""What every test shares: the event loop, a nats-server for all, one of its own for those that break it."""

import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from hypothesis import settings

from bus.server import Server, prepare, run_server, wait_answering
from tests.faults.stalls import PULSE_S, Stalls

# How long an example takes says nothing on a machine that does other things, too.
settings.register_profile("busway", deadline=None)
settings.load_profile("busway")

# Enough for a machine that stands still every other second.
NUM_RACES = 20
NUM_QUIET_RACES = 2

# One plain line an event: the default renders tracebacks with all locals, which takes seconds.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
    ]
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run asynchronous tests as the processes run."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one nats-server for the whole run: tests keep apart by `namespace`, and must not break it."""
    # Every namespace reserves the bounds of all its streams.
    files = prepare(str(tmp_path_factory.mktemp("nats-server")), memory_bytes=2**50, file_bytes=2**50)
    with subprocess.Popen(files.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            anyio.run(wait_answering, files.port)
            yield files.url
        finally:
            process.terminate()


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[Server]:
    """A nats-server of the test's own, to kill and start again."""
    async with run_server(str(tmp_path)) as server:
        yield server


class Collector:
    """A handler that keeps what it gets, and lets a test wait for it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = anyio.Event()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._changed.set()

    async def until(self, is_met: Callable[[list[Any]], bool], timeout_s: float = 30.0) -> list[Any]:
        """Wait until the collected items meet a condition; fail after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            while not is_met(self.items):
                self._changed = anyio.Event()
                await self._changed.wait()
        assert is_met(self.items), f"after {timeout_s} s: {self.items}"
        return self.items

    async def wait(self, count: int, timeout_s: float = 30.0) -> list[Any]:
        """Wait for so many items."""
        return await self.until(lambda items: len(items) >= count, timeout_s)


@pytest.fixture
def collect() -> type[Collector]:
    """The class of handlers that keep what they get."""
    return Collector


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait for a condition that nobody signals; fail after a deadline."""

    async def wait(is_met: Callable[[], bool], timeout_s: float = 30.0) -> None:
        with anyio.move_on_after(timeout_s):
            while not is_met():  # noqa: ASYNC110
                await anyio.sleep(0.005)
        assert is_met(), f"not so after {timeout_s} s"

    return wait


@pytest.fixture
def undisturbed() -> Callable[..., Awaitable[None]]:
    """Run what races against real time on purpose, again where this machine stood still meanwhile.

    `bar_s` is how late the machine may be before what failed is its fault. What another process was late is not seen
    here: so what failed on a machine that seems quiet has another try, too.
    """

    async def run(race: Callable[[], Awaitable[None]], bar_s: float) -> None:
        num_quiet = 0
        for _ in range(NUM_RACES):
            stalls, failure = Stalls(), None
            async with stalls.watch():
                try:
                    await race()
                except Exception as error:
                    failure = error
                    await anyio.sleep(2 * PULSE_S)  # a stall that has just ended is noticed
            if failure is None:
                return
            num_quiet += stalls.longest_s < bar_s
            if num_quiet == NUM_QUIET_RACES:
                raise failure
        pytest.fail(f"this machine stood still for more than {bar_s} s in each of {NUM_RACES} races")

    return run
