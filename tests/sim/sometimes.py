"""Pure. What must have happened at least once in a set of runs: a fault that never struck has tested nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping

FAULTS = (
    "fault.kill_worker",
    "fault.kill_router",
    "fault.kill_frontend",
    "fault.stop_worker",
    "fault.stop_router",
    "fault.stop_frontend",
    "fault.freeze",
    "fault.cut",
    "fault.drop",
    "fault.double",
    "fault.delay",
    "fault.reorder",
    "fault.append_lost",
    "fault.append_unanswered",
    "fault.ack_lost",
    "fault.broker_lost",
    "fault.broker_away",
    "fault.garbage",
    "fault.clock_jump",
    "fault.slow_engine",
)

PATHS = {
    "request.retried:worker_lost": "a request moved to another worker",
    "request.retried:gap": "a token was missing, and came with another attempt",
    "request.retried:failed": "a worker gave a request back, and another took it",
    "request.retried:broker_lost": "a request was sent again after a reconnect",
    "request.retried:router_lost": "a request was taken from a router that is gone",
    "path.any": "a frontend found no router, and used the lane that all workers share",
    "path.takeover": "another router began to lead",
    "path.redelivered": "a job that nobody acknowledged was delivered again",
    "path.cancelled": "a worker was told to stop working on something",
    "path.buried": "what could not be read ended among the dead letters",
    "path.doubled_token": "a token came twice, and the second was dropped",
    "path.stale_token": "a token of an attempt that is over was dropped",
    "requests.rescued": "a router took back what a lost worker had not accepted",
    "worker.drained": "a worker drained",
    "router.drained": "a router drained",
    "frontend.draining": "a frontend drained",
    "frontend.lost": "a worker gave up the work of a frontend that is gone",
    "client.finished": "an answer was complete",
    "client.failed": "a client was told that there is no answer",
    "client.left": "a client left before the end",
}


def never(counts: Iterable[Mapping[str, int]]) -> list[str]:
    """Return what happened in none of these runs, a line each."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    lines = [f"never happened: {name}" for name in FAULTS if not total[name]]
    return lines + [f"never happened: {name}: {what}" for name, what in PATHS.items() if not total[name]]
