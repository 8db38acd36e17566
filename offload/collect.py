"""Pure. What to remove from a shared store: what has outlived its time, and what is beyond its quotas."""

from collections import defaultdict
from collections.abc import Iterable
from operator import attrgetter

from offload.key import BlockKey, Space
from offload.store import Listed


def find_garbage(listed: Iterable[Listed], now: float, *, max_bytes: int, max_space_bytes: int) -> list[BlockKey]:
    """Return the blocks that are to go; `now` in unix seconds, bounds in bytes, 0 is none.

    Beyond a quota goes first what would go first by itself, so pinned blocks stay longest.
    """
    garbage: list[BlockKey] = []
    by_space: dict[Space, list[Listed]] = defaultdict(list)
    for each in listed:
        if each.expires_at <= now:
            garbage.append(each.key)
        else:
            by_space[each.key.space].append(each)
    kept: list[Listed] = []
    for blocks in by_space.values():
        gone, rest = _cut(blocks, max_space_bytes)
        garbage += gone
        kept += rest
    return garbage + _cut(kept, max_bytes)[0]


def _cut(blocks: list[Listed], max_bytes: int) -> tuple[list[BlockKey], list[Listed]]:
    """Return what goes and what stays, so that this fits."""
    excess = sum([each.num_bytes for each in blocks]) - max_bytes if max_bytes else 0
    if excess <= 0:
        return [], blocks
    blocks = sorted(blocks, key=attrgetter("expires_at"))
    count = 0
    while excess > 0:
        excess -= blocks[count].num_bytes
        count += 1
    return [each.key for each in blocks[:count]], blocks[count:]
