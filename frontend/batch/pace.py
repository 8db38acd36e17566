"""Pure. How many lines of batches a frontend has in flight: more while nobody waits, few as soon as somebody does."""

MAX_IN_FLIGHT = 64
STEP = 4


class Pace:
    """Additive increase, multiplicative decrease; one line at least goes on, so that no batch starves."""

    def __init__(self) -> None:
        self.limit = STEP

    def look(self, *, is_crowded: bool, num_in_flight: int) -> None:
        """Adapt to what was seen just now; what is not used up does not grow."""
        if is_crowded:
            self.slow_down()
        elif num_in_flight >= self.limit:
            self.limit = min(MAX_IN_FLIGHT, self.limit + STEP)

    def slow_down(self) -> None:
        """Have half as many in flight: somebody waits, or a line was refused."""
        self.limit = max(1, self.limit // 2)
