"""Pure. Blocks that stay although no sequence needs them: held for who reads them later, pinned for who stores them."""

from collections.abc import Iterator, Sequence

from components.engines.batching.pool import BlockPool
from components.engines.exchange import Held, Note, Pinned


class Leases:
    """References beside those of the sequences. `notes` tells of them, for the scheduler's owner to take."""

    def __init__(self, pool: BlockPool) -> None:
        self.notes: list[Note] = []
        self._pool = pool
        self._held: dict[int, list[int]] = {}
        self._pinned: dict[int, list[int]] = {}

    def num_held(self, key: int) -> int:
        """Count the blocks that are held for `key`."""
        return len(self._held.get(key, ()))

    def hold(self, key: int, blocks: Sequence[int], hashes: Sequence[int], *, is_last: bool) -> None:
        """Keep more blocks of a sequence until `release`: those after the ones that were held before."""
        held = self._held.setdefault(key, [])
        self.notes.append(Held(key, len(held), list(blocks), list(hashes), is_last))
        self._pool.share(blocks)
        held += blocks

    def release(self, key: int) -> None:
        """Give up what is held for `key`; unknown keys are no error."""
        self._pool.release(self._held.pop(key, []))

    def pin(self, token: int, hashes: Sequence[int]) -> None:
        """Keep the blocks of the longest known beginning of `hashes` until `unpin`; a token is used once at a time."""
        blocks = [] if token in self._pinned else self._pool.match_prefix(hashes)
        self._pool.share(blocks)
        self._pinned.setdefault(token, blocks)
        self.notes.append(Pinned(token, blocks))

    def unpin(self, token: int) -> None:
        """Give up what `token` keeps; unknown tokens are no error."""
        self._pool.release(self._pinned.pop(token, []))

    def block_lists(self) -> Iterator[Sequence[int]]:
        """Yield all that is kept here, for `BlockPool.check`."""
        yield from self._held.values()
        yield from self._pinned.values()

    def __bool__(self) -> bool:
        return bool(self._held or self._pinned)
