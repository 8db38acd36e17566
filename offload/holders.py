"""Pure. Which other worker has a block in its host memory, as they told last."""

from collections.abc import Iterable

MAX_BLOCKS = 1_000_000


class Holders:
    """One holder for each block, at most `max_blocks`: those told of longest ago are forgotten first.

    What is known may be wrong: who asks a holder in vain forgets it.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._workers: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def find(self, block: int) -> str | None:
        """Return who has a block."""
        return self._workers.get(block)

    def store(self, worker: str, blocks: Iterable[int]) -> None:
        """Note that a worker has blocks."""
        workers = self._workers
        for block in blocks:
            workers.pop(block, None)
            workers[block] = worker
        while len(workers) > self._max_blocks:
            del workers[next(iter(workers))]

    def remove(self, worker: str, blocks: Iterable[int]) -> None:
        """Note that a worker has blocks no more."""
        for block in blocks:
            if self._workers.get(block) == worker:
                del self._workers[block]

    def forget(self, worker: str) -> None:
        """Note that a worker has nothing any more."""
        self._workers = {block: holder for block, holder in self._workers.items() if holder != worker}
