"""Pure. How many more requests a worker takes, and how many each of its lanes may still deliver."""

GRANT_SIZE = 32
"""Most deliveries that one lane has open: what several lanes hold open together may exceed the free slots,
and the surplus of a burst goes back to the queue."""


class Slots:
    """Slots taken and free, and the deliveries granted to each lane that have not arrived yet.

    Every lane is granted up to the free slots, because nobody knows which lane will have work. One lane alone
    never delivers more than there is room for: a delivery takes from its grant and from the free slots alike.
    """

    def __init__(self, total: int, num_lanes: int) -> None:
        self.total = total
        self.taken = 0
        self._granted = [0] * num_lanes

    @property
    def free(self) -> int:
        return self.total - self.taken

    def arrive(self, lane: int) -> bool:
        """Count one delivery of `lane`; return whether there is a slot for it. It is not taken yet."""
        if self._granted[lane] > 0:
            self._granted[lane] -= 1
        return self.taken < self.total

    def take(self) -> None:
        self.taken += 1

    def release(self) -> None:
        self.taken -= 1

    def top_up(self) -> list[tuple[int, int]]:
        """Return (lane, deliveries it may have open in all) for each lane that is worth a new grant.

        A lane is topped up when half of what it could have is used, so that a burst costs a grant for every
        `GRANT_SIZE / 2` jobs and not one for each.
        """
        target = min(self.total - self.taken, GRANT_SIZE)
        grants = []
        for lane, granted in enumerate(self._granted):
            if granted <= target // 2 and granted < target:
                self._granted[lane] = target
                grants.append((lane, target))
        return grants
