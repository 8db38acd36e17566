"""Pure. Whose the blocks in the engine are: its events name hashes only, tiers keep tenants apart and pins apart."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from bus.messages.inference import Hints
from offload.key import Space
from offload.tier import Retention


class Origin(NamedTuple):
    """What blocks of one request have in common."""

    space: Space
    retention: Retention


def retention_of(hints: Hints, now: float) -> Retention:
    """Return how long the blocks of a request with these hints are to be kept; `now` in unix seconds."""
    return Retention(hints.priority, now + hints.pin_ttl_s if hints.pin_ttl_s else 0.0)


class Origins:
    """Origins of at most `max_blocks` blocks; those that were named longest ago are forgotten, and not offloaded."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._origins: OrderedDict[int, Origin] = OrderedDict()

    def note(self, hashes: Iterable[int], origin: Origin) -> None:
        """A request has, or will have, these blocks."""
        origins = self._origins
        for block_hash in hashes:
            origins[block_hash] = origin
            origins.move_to_end(block_hash)
        while len(origins) > self._max_blocks:
            origins.popitem(last=False)

    def find(self, parent_hash: int, hashes: list[int]) -> Origin | None:
        """Return the origin of blocks that follow each other behind `parent_hash`, which passes on to them.

        A prompt was named by its request; what is generated continues a block that is known.
        """
        origin = self._origins.get(hashes[0]) or self._origins.get(parent_hash)
        if origin is not None:
            self.note(hashes, origin)
        return origin
