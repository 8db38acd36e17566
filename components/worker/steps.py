"""Pure. What the engine's steps took since the last load report, few enough to be told."""

from bus.messages.fleet import StepSample
from components.engines import StepStats

MAX_SAMPLES = 64


class StepSamples:
    """Keeps every step, then every second, then every fourth, so that there are never more than `MAX_SAMPLES`."""

    def __init__(self) -> None:
        self._samples: list[StepSample] = []
        self._stride = 1
        self._num_skipped = 0

    def add(self, stats: StepStats) -> None:
        self._num_skipped += 1
        if self._num_skipped < self._stride:
            return
        self._num_skipped = 0
        self._samples.append(StepSample(stats.duration_s, stats.prefill_tokens, stats.decode_requests, stats.kv_tokens))
        if len(self._samples) > MAX_SAMPLES:
            self._samples = self._samples[::2]
            self._stride *= 2

    def take(self) -> list[StepSample]:
        """Return the samples since the last call, in order."""
        samples, self._samples = self._samples, []
        self._stride = 1
        self._num_skipped = 0
        return samples
