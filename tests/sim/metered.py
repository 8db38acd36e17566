"""Pure. Paths that only the metrics of the processes tell of: how often each was taken since a run began."""

from bus.metrics import REGISTRY

_HANDOVERS, _FETCHES, _TIERS = "busway_worker_handovers", "busway_worker_fetches", "busway_offload_blocks"
METERS: dict[str, tuple[str, dict[str, str]]] = {
    "path.doubled_token": ("busway_frontend_dropped_tokens", {"reason": "duplicate"}),
    "path.stale_token": ("busway_frontend_dropped_tokens", {"reason": "stale"}),
    "path.handed_over": (_HANDOVERS, {"outcome": "released"}),
    "path.handover_expired": (_HANDOVERS, {"outcome": "expired"}),
    "path.handover_withdrawn": (_HANDOVERS, {"outcome": "withdrawn"}),
    "path.blocks_read": (_FETCHES, {"outcome": "read"}),
    "path.blocks_early": (_FETCHES, {"outcome": "early"}),
    "path.blocks_unneeded": (_FETCHES, {"outcome": "unneeded"}),
    "path.blocks_failed": (_FETCHES, {"outcome": "failed"}),
    "path.host_stored": (_TIERS, {"tier": "host", "outcome": "stored"}),
    "path.host_loaded": (_TIERS, {"tier": "host", "outcome": "loaded"}),
    "path.host_evicted": (_TIERS, {"tier": "host", "outcome": "evicted"}),
    "path.peer_loaded": (_TIERS, {"tier": "peer", "outcome": "loaded"}),
    "path.shared_stored": (_TIERS, {"tier": "redis", "outcome": "stored"}),
    "path.shared_loaded": (_TIERS, {"tier": "redis", "outcome": "loaded"}),
    "path.shared_missed": (_TIERS, {"tier": "redis", "outcome": "missed"}),
    "path.shared_broken": (_TIERS, {"tier": "redis", "outcome": "broken"}),
    "path.peer_missed": (_TIERS, {"tier": "peer", "outcome": "missed"}),
}
"""Counters and their labels."""


class Meters:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._began = _read()

    def read(self) -> dict[str, int]:
        """Return how often each path was taken."""
        return {path: count - self._began[path] for path, count in _read().items()}


def _read() -> dict[str, int]:
    return {
        path: int(REGISTRY.get_sample_value(f"{name}_total", labels) or 0) for path, (name, labels) in METERS.items()
    }
