"""Pure. A line through what was measured lately: seconds by size."""

FORGET = 0.95
"""Weight of older measurements at each new one: some 20 count."""
MIN_SPREAD = 0.05
"""Of the mean size: below this, sizes are too alike to tell a fixed part from one that grows."""


class Line:
    """`seconds = base_s + size * unit_s`, fitted by least squares with forgetting; neither part is below 0."""

    def __init__(self) -> None:
        self.count = 0
        self.base_s = 0.0
        self.unit_s = 0.0
        self.error_s = 0.0
        """Mean absolute error of late predictions."""
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, size: float, seconds: float) -> None:
        """Take a measurement."""
        if self.count >= 2:
            error_s = abs(seconds - self.predict(size))
            self.error_s = error_s if self.count == 2 else 0.8 * self.error_s + 0.2 * error_s
        self.count += 1
        self._weight = self._weight * FORGET + 1.0
        self._x = self._x * FORGET + size
        self._y = self._y * FORGET + seconds
        self._xx = self._xx * FORGET + size * size
        self._xy = self._xy * FORGET + size * seconds
        self._fit()

    def predict(self, size: float) -> float:
        """Return the expected seconds."""
        return self.base_s + size * self.unit_s

    def _fit(self) -> None:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        if variance > (MIN_SPREAD * mean_x) ** 2:
            unit_s = (self._xy / self._weight - mean_x * mean_y) / variance
        else:
            unit_s = mean_y / mean_x if mean_x else 0.0
        self.unit_s = min(max(0.0, unit_s), mean_y / mean_x if mean_x else 0.0)
        self.base_s = mean_y - mean_x * self.unit_s
