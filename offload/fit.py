"""Pure. Seconds as a sum of a fixed part and parts that grow with sizes, fitted to what was measured lately.

Measurements are gathered by magnitude, and every magnitude counts the same, by its relative error: a thousand large
ones do not make the small ones look free, nor is what a small one costs forgotten while only large ones come.
"""

from collections.abc import Iterator
from itertools import combinations

FRESH = 0.2
"""Weight of a measurement against those before of its magnitude; the first few, some of them cold, count alike."""
FIRST_ERROR = 0.2
FADE = 0.97
MIN_WEIGHT = 0.02
"""Of a magnitude that was not measured lately, against one that was."""
MIN_SECONDS = 1e-6
"""What is shorter than that counts as no shorter."""
TIE = 1e-9
MAX_LAG = 8
"""Measurements between two fits, once there are many."""


class _Group:
    """Means over the late measurements of one magnitude."""

    __slots__ = ("at", "count", "seconds", "sizes")

    def __init__(self, num_sizes: int) -> None:
        self.sizes = [0.0] * num_sizes
        self.seconds = 0.0
        self.count = 0
        self.at = 0


class Fit:
    """`seconds = base_s + sum(size[i] * unit_s[i])`, no part below 0."""

    def __init__(self, num_sizes: int = 1) -> None:
        self.count = 0
        self.error = FIRST_ERROR
        """Mean error of late predictions, relative to them."""
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._parts = [0.0] * (num_sizes + 1)
        self._next_fit = 1
        """A fit is due when so many measurements were taken."""

    @property
    def base_s(self) -> float:
        return self._parts[0]

    @property
    def units_s(self) -> list[float]:
        return self._parts[1:]

    def add(self, seconds: float, *sizes: float) -> None:
        """Take a measurement."""
        if self.count >= 2:
            predicted_s = max(MIN_SECONDS, self.predict(*sizes))
            error = min(1.0, abs(seconds - predicted_s) / predicted_s)
            self.error += FRESH * (error - self.error)
        self.count += 1
        magnitude = tuple([int(size).bit_length() // 2 for size in sizes])
        group = self._groups.setdefault(magnitude, _Group(len(sizes)))
        group.count += 1
        fresh = max(FRESH, 1 / group.count)
        group.seconds += fresh * (seconds - group.seconds)
        group.sizes = [mean + fresh * (size - mean) for mean, size in zip(group.sizes, sizes, strict=True)]
        group.at = self.count
        if self.count >= self._next_fit:
            self._parts = _least_squares(list(self._rows()))
            self._next_fit = self.count + 1 + min(MAX_LAG, self.count // 4)

    def predict(self, *sizes: float) -> float:
        """Return the expected seconds."""
        return self.base_s + sum([size * unit_s for size, unit_s in zip(sizes, self.units_s, strict=True)])

    def _rows(self) -> Iterator[list[float]]:
        """Yield an equation for each magnitude: factors of the parts, whose sum is to be about the weight behind."""
        for group in self._groups.values():
            weight = max(MIN_WEIGHT, FADE ** (self.count - group.at)) ** 0.5
            scale = weight / max(MIN_SECONDS, group.seconds)
            yield [scale, *[scale * size for size in group.sizes], scale * group.seconds]


def _least_squares(rows: list[list[float]]) -> list[float]:
    """Return the parts, none below 0, with the least error; where sizes are too alike to tell, what grows with them."""
    num_parts = len(rows[0]) - 1
    best, best_error = [0.0] * num_parts, float("inf")
    for chosen in _subsets(num_parts):
        solution = _solve(rows, chosen)
        if solution is None or min(solution) < 0:
            continue
        parts = [0.0] * num_parts
        for place, value in zip(chosen, solution, strict=True):
            parts[place] = value
        if len(chosen) == num_parts:
            return parts
        error = sum([(sum([a * b for a, b in zip(row, parts, strict=False)]) - row[-1]) ** 2 for row in rows])
        if error < best_error - TIE:
            best, best_error = parts, error
    return best


def _subsets(num_parts: int) -> Iterator[tuple[int, ...]]:
    """Yield the parts that may be above 0: all, then fewer, those that grow before the fixed one."""
    for count in range(num_parts, 0, -1):
        yield from sorted(combinations(range(num_parts), count), reverse=True)


def _solve(rows: list[list[float]], chosen: tuple[int, ...]) -> list[float] | None:
    """Return the values of the chosen parts with the least error; None: there is no one solution."""
    norms = [max([abs(row[place]) for row in rows]) for place in chosen]
    if not all(norms):
        return None
    scaled = [[row[place] / norm for place, norm in zip(chosen, norms, strict=True)] + [row[-1]] for row in rows]
    size = len(chosen)
    matrix = [[sum([row[i] * row[j] for row in scaled]) for j in range(size + 1)] for i in range(size)]
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda i: abs(matrix[i][pivot]))
        matrix[pivot], matrix[largest] = matrix[largest], matrix[pivot]
        if abs(matrix[pivot][pivot]) < TIE:
            return None
        for i in range(size):
            if i != pivot:
                factor = matrix[i][pivot] / matrix[pivot][pivot]
                matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[pivot], strict=True)]
    return [matrix[i][size] / matrix[i][i] / norms[i] for i in range(size)]
