"""I/O. The standing pulls of a worker, opened and closed as its roles and its peers change."""

from collections.abc import Callable, Collection, Iterable

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from bus.messages.inference import LATENCY_CLASSES, LatencyClass, Role
from bus.permissions import own_lane, shared_lane
from bus.protocol import Bus, ConsumerSpec, Delivery, Pull
from bus.subjects import ANY_WORKER

ACCEPT_WITHIN_S = 1.0
"""A job handed to a worker as it died goes to another after this; one that lives accepts within milliseconds."""
FORGET_LANE_S = 60.0
"""When the broker forgets the lane of a worker that is gone; the jobs in it go elsewhere long before."""
MAX_DELIVER = 20
"""Deliveries of one job. Going back because slots are taken is ordinary here, so there are more than for poison;
at the last one the owner is told instead."""


class Lane(msgspec.Struct, frozen=True):
    """What comes by one pull."""

    role: Role
    latency_class: LatencyClass | None = None
    """Of a lane that is shared; the worker's own ones bring all classes, in the order that a router decided."""


class _Open:
    """A pull that goes on until `close`."""

    def __init__(self, lane: Lane, pull: Pull, close: anyio.Event) -> None:
        self.lane = lane
        self.pull = pull
        self.close = close


class Lanes:
    """Lanes by name. A worker's own lane of a role stays open when it leaves the role: what a router sent is done."""

    def __init__(self, bus: Bus, worker: str, model: str, handler: Callable[[Lane, Delivery], None]) -> None:
        """`model` is a slug."""
        self._bus = bus
        self._worker = worker
        self._model = model
        self._handler = handler
        self._open: dict[str, _Open] = {}
        self._own: set[Role] = set()

    @property
    def pulls(self) -> list[tuple[Lane, Pull]]:
        """What is open now."""
        return [(each.lane, each.pull) for each in self._open.values()]

    async def change(self, roles: Collection[Role], shared: Iterable[Role], tasks: TaskGroup) -> None:
        """Pull from the own lanes of `roles`, from the shared lanes of `shared`, and from no other shared lane.

        `tasks` carries the pulls. Raises what `Bus.pull` raises.
        """
        self._own.update(roles)
        lanes = [Lane(role) for role in sorted(self._own)]
        lanes += [Lane(role, each) for role in sorted(shared) for each in LATENCY_CLASSES]
        wanted = {spec.name: (lane, spec) for lane in lanes for spec in [self._spec_of(lane)]}
        for name in [name for name in self._open if name not in wanted]:
            self._open.pop(name).close.set()
        for name, (lane, spec) in wanted.items():
            if name not in self._open:
                self._open[name] = await tasks.start(self._keep, lane, spec)

    def close(self) -> None:
        """Stop all pulls."""
        while self._open:
            self._open.popitem()[1].close.set()

    async def _keep(self, lane: Lane, spec: ConsumerSpec, *, task_status: TaskStatus[_Open]) -> None:
        close = anyio.Event()
        async with self._bus.pull(spec, lambda delivery: self._handler(lane, delivery)) as pull:
            task_status.started(_Open(lane, pull, close))
            await close.wait()

    def _spec_of(self, lane: Lane) -> ConsumerSpec:
        work = self._bus.subjects.work
        if lane.latency_class is None:
            subject = work(self._model, lane.role, self._worker, "*")
            return _spec(own_lane(self._worker, lane.role), subject, inactive_s=FORGET_LANE_S)
        subject = work(self._model, lane.role, ANY_WORKER, lane.latency_class)
        return _spec(shared_lane(self._model, lane.role, lane.latency_class), subject)


def _spec(name: str, filter_subject: str, *, inactive_s: float | None = None) -> ConsumerSpec:
    return ConsumerSpec(
        stream="WORK",
        name=name,
        filter_subject=filter_subject,
        max_deliver=MAX_DELIVER,
        ack_wait_s=ACCEPT_WITHIN_S,
        inactive_s=inactive_s,
    )
