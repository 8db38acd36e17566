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
    "fault.hang_engine",
    "fault.set_roles",
    "fault.read_lost",
    "fault.read_slow",
    "fault.store_lost",
    "fault.store_slow",
    "fault.store_flip",
    "fault.store_forgets",
)

PATHS = {
    "request.retried:worker_lost": "a request moved to another worker",
    "request.retried:gap": "a token was missing, and came with another attempt",
    "request.retried:draining": "a worker that had to leave gave a request back, and another took it",
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
    "engine.stuck": "a worker gave its requests back, for its engine made no step",
    "engine.goes_on": "an engine that was stuck went on after all",
    "engine.died": "a worker gave up an engine that was stuck, and ended",
    "worker.drained": "a worker drained",
    "router.drained": "a router drained",
    "frontend.draining": "a frontend drained",
    "frontend.lost": "a worker gave up the work of a frontend that is gone",
    "roles.changed": "a worker got other roles",
    "path.handed_over": "a worker decoded what another one had prefilled",
    "path.handover_expired": "nobody came for what was prefilled, and the lease of its blocks ended",
    "path.handover_withdrawn": "an offer of prefilled blocks was taken back",
    "path.blocks_read": "prefilled blocks came from another worker's memory",
    "path.blocks_early": "prefilled blocks came while the rest of the prompt was computed",
    "path.blocks_unneeded": "prefilled blocks were not needed (any more)",
    "path.blocks_failed": "prefilled blocks did not come, and were computed again",
    "path.host_stored": "blocks were copied to host memory",
    "path.host_loaded": "blocks came back from host memory",
    "path.host_evicted": "blocks had to leave host memory",
    "path.peer_loaded": "blocks came from another worker's host memory",
    "path.peer_missed": "another worker did not have the blocks that it was asked for",
    "path.shared_stored": "blocks were written into the store that all workers share",
    "path.shared_loaded": "blocks came back from there",
    "path.shared_missed": "blocks were not there (any more)",
    "path.shared_broken": "blocks from there were wrong, and not used",
    "client.finished": "an answer was complete",
    "client.stopped": "an answer ended at letters that its client had named",
    "client.late": "an answer was given up because its deadline had passed",
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
