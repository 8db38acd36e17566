"""A process runs until done, drains at the first signal, and stops dead at the second."""

import os
import signal

import anyio
import pytest

from bus.lifecycle import serve

pytestmark = pytest.mark.anyio


class Process:
    """Runs until it is stopped, then takes as long to drain as it is told."""

    def __init__(self, drains: bool = True) -> None:
        self.drains = drains
        self.stops = 0
        self.started = anyio.Event()
        self.stopping = anyio.Event()
        self.cleaned_up = False

    def stop(self) -> None:
        self.stops += 1
        self.stopping.set()

    async def run(self) -> None:
        self.started.set()
        try:
            await self.stopping.wait()
            if not self.drains:
                await anyio.sleep_forever()
        finally:
            self.cleaned_up = True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    process = Process()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, process)
            await process.started.wait()
            os.kill(os.getpid(), number)
    assert process.stops == 1


async def test_the_second_signal_cancels_and_lets_clean_up() -> None:
    process = Process(drains=False)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, process)
            await process.started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await process.stopping.wait()
            os.kill(os.getpid(), signal.SIGINT)
    assert (process.stops, process.cleaned_up) == (1, True)


async def test_what_runs_raises_itself_not_a_group() -> None:
    class Broken(Process):
        async def run(self) -> None:
            raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await serve(Broken())


async def test_it_returns_when_there_is_nothing_more_to_do() -> None:
    class Short(Process):
        async def run(self) -> None:
            return

    with anyio.fail_after(30):
        await serve(Short())
