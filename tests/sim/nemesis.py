"""I/O (in memory). Who breaks things: draws faults from a seed, one every few seconds, and mends what it broke."""

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import anyio
from anyio.abc import TaskGroup

from bus.codec import encode
from bus.messages.inference import Role, SetRoles
from bus.testing.connection import MemoryBus
from tests.sim.stage import FOREVER_S, Process, Stage
from tests.sim.weather import INTRUDER, Climate

EVERY_S = 1.5
"""Mean time between two faults."""
ROLES: tuple[tuple[Role, ...], ...] = (("both",), ("prefill",), ("decode",), ("prefill", "decode"))
MAX_FUSE = 60
"""Things that a process still does before its fuse has burnt down, at most."""


class Nemesis:
    """Breaks one thing after another until told to stop; `mend` is the end of it."""

    def __init__(self, stage: Stage, rng: Random, tasks: TaskGroup) -> None:
        self._stage = stage
        self._rng = rng
        self._tasks = tasks
        self._intruder: MemoryBus | None = None
        self._faults: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self._kill,
            self._kill,
            self._burn_fuse,
            self._burn_fuse,
            self._stop,
            self._freeze,
            self._freeze,
            self._cut,
            self._storm,
            self._storm,
            self._storm,
            self._lose_broker,
            self._garbage,
            self._jump,
            self._hang,
        )
        if stage.layout.offload.redis.url:
            self._faults += (self._forget_store,)
        if stage.layout.has_roles:
            self._faults += (self._set_roles, self._set_roles)

    async def run(self, duration_s: float) -> None:
        """Break things for so long."""
        async with self._stage.broker.connect(INTRUDER) as self._intruder:
            with anyio.move_on_after(duration_s):
                while True:
                    await anyio.sleep(self._rng.expovariate(1 / EVERY_S))
                    self._tasks.start_soon(self._rng.choice(self._faults))

    def _any_process(self) -> Process:
        return self._rng.choice(self._stage.processes)

    def _any_worker(self) -> Process:
        return self._rng.choice(list(self._stage.of_kind("worker")))

    async def _kill(self) -> None:
        self._stage.kill(self._any_process())

    async def _burn_fuse(self) -> None:
        """Let a process die in the middle of what it does."""
        process = self._any_process()
        self._stage.weather.fuses[process.name] = (self._rng.randrange(MAX_FUSE), lambda: self._stage.kill(process))

    async def _stop(self) -> None:
        self._stage.stop(self._any_process())

    async def _freeze(self) -> None:
        name, duration_s = self._any_process().name, self._rng.choice((0.2, 0.8, 1.5, 4.0, 12.0))
        self._stage.trace.note("fault.freeze", f"{name} {duration_s}")
        self._stage.loop.freeze(name)
        await anyio.sleep(duration_s)
        self._stage.loop.thaw(name)

    async def _hang(self) -> None:
        await self._stage.hang(self._any_worker(), self._rng.choice((2.5, FOREVER_S, FOREVER_S)))

    async def _cut(self) -> None:
        """Cut a process off the broker for a while."""
        process = self._any_process()
        bus = self._stage.broker.find(process.name)
        if bus is None or bus.is_cut:
            return
        self._stage.trace.note("fault.cut", process.name)
        self._stage.broker.cut(bus)
        await anyio.sleep(self._rng.choice((0.02, 0.5, 2.0, 6.0)))
        if self._stage.broker.find(bus.name) is bus and not (process.is_dead and process.name == bus.name):
            await self._stage.broker.heal(bus)

    async def _storm(self) -> None:
        """Make the weather bad in one way for a while."""
        climate, share = self._stage.weather.climate, self._rng.choice((0.01, 0.05, 0.15))
        kind = self._rng.choice(Climate.__struct_fields__)
        if kind.startswith(("read_", "store_")):
            share *= 4  # there is little of that
        setattr(climate, kind, share)
        await anyio.sleep(0.5 + 3 * self._rng.random())
        setattr(climate, kind, 0.0)

    async def _lose_broker(self) -> None:
        """Stop the broker and start it again, in half of the cases without what it had in memory."""
        broker = self._stage.broker
        if not broker.is_up:
            return
        forgets = self._rng.random() < 0.5
        self._stage.trace.note("fault.broker_lost" if forgets else "fault.broker_away")
        broker.stop()
        if forgets:
            broker.forget()
        await anyio.sleep(self._rng.choice((0.02, 0.2, 1.0, 6.0)))
        await broker.start()

    async def _garbage(self) -> None:
        """Send parts of real messages, and noise, where they came from."""
        assert self._intruder is not None
        for _ in range(self._rng.randint(1, 20)):
            if not self._stage.weather.samples:
                return
            subject, payload = self._rng.choice(self._stage.weather.samples)
            if self._rng.random() < 0.5:
                payload = payload[: self._rng.randrange(len(payload))]
            else:
                payload = self._rng.randbytes(self._rng.randrange(64))
            self._stage.trace.note("fault.garbage", subject)
            self._intruder.publish(subject, payload)
            await anyio.sleep(0.01)

    async def _forget_store(self) -> None:
        """Let the store that workers share lose everything."""
        self._stage.trace.note("fault.store_forgets")
        self._stage.shelf.blobs.clear()

    async def _jump(self) -> None:
        """Set the clock of one process, back or forth."""
        name, by_s = self._any_process().name, self._rng.choice((-3600.0, -5.0, -0.5, 0.5, 5.0, 3600.0))
        self._stage.trace.note("fault.clock_jump", f"{name} {by_s:+}")
        self._stage.wall.shifts[name] = self._stage.wall.shifts.get(name, 0.0) + by_s

    async def _set_roles(self) -> None:
        """Let a worker change what it does."""
        assert self._intruder is not None
        worker, roles = self._any_worker().name, self._rng.choice(ROLES)
        self._stage.trace.note("fault.set_roles", f"{worker} {' '.join(roles)}")
        self._intruder.publish(self._intruder.subjects.ctl(worker), encode(SetRoles(roles=list(roles))))
