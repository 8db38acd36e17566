"""Pure. Whether the engine still does what it should: steps while it has work, and says the same as before when asked.

An idle engine is asked for a few tokens now and then, always the same. What it says the first time is held to be
right; a sick GPU that comes to say something else, or nothing, or values that are not finite, is found before a
request meets it. The worker then ends: whoever supervises it starts a fresh one.

A step that takes far longer than such steps do may end after all, only nobody should wait for that (`is_stuck`).
"""

from msgspec.structs import replace

from bus.errors import EngineDied
from bus.messages.inference import Sampling, Stopping
from components.engines import EngineLoad, EngineRequest, EngineSpec, Step
from components.worker.pace import Pace

NUM_PROMPT_TOKENS = 8
"""Less than a block: no prefix of it is ever cached, so that it is computed each time, and alike."""
NUM_TOKENS = 4
MAX_WRONG = 3
"""Wrong answers in a row: other work in the batch may change the last digit of a sum, once."""
LATE_PERIODS = 3
"""Times between two looks after which the process stood still itself."""
MAX_BROKEN = 8
"""Sequences in a row that the engine had to give up."""


class Canary:
    """Follows the steps of one engine. Times are monotonic seconds."""

    def __init__(self, spec: EngineSpec, *, idle_s: float, stall_s: float, now: float) -> None:
        """`idle_s` without a step make a tiny generation due, 0: never; `stall_s` without one, with work, are death."""
        self._spec = spec
        self._idle_s = idle_s
        self._stall_s = stall_s
        self._stepped_at = self._free_at = self._looked_at = now
        self._key: int | None = None
        self._tokens: list[int] = []
        self._expected: list[int] = []
        self._num_wrong = 0
        self._num_broken = 0
        self._pace = Pace()
        self._is_stuck = False

    @property
    def stepped_at(self) -> float:
        """When the last step ended."""
        return self._stepped_at

    @property
    def period_s(self) -> float:
        """How often `look` is to be called."""
        return min(0.25, self._stall_s / 4)

    def look(self, now: float, num_live: int) -> bool:
        """Say whether a tiny generation is due, given the number of sequences that the engine has for others.

        Raises `EngineDied` when the engine is stuck, or has been wrong too often.
        """
        is_late = now - self._looked_at > LATE_PERIODS * self.period_s
        self._looked_at = now
        if not self._is_stuck and (is_late or not (num_live or self._key is not None)):
            # A process that stood still itself cannot blame its engine.
            self._free_at = now
        waited_s = now - max(self._stepped_at, self._free_at)
        if waited_s > self._stall_s:
            raise EngineDied(f"no step for {waited_s:.1f} s, with {num_live} sequences in the engine")
        if self._num_wrong >= MAX_WRONG:
            raise EngineDied(f"{MAX_WRONG} times in a row it said something else than before to the same prompt")
        if self._num_broken >= MAX_BROKEN:
            raise EngineDied(f"{MAX_BROKEN} sequences in a row came to nothing")
        is_idle = not num_live and self._key is None and now - self._stepped_at >= self._idle_s
        return bool(self._idle_s) and is_idle

    def is_stuck(self, now: float, load: EngineLoad) -> bool:
        """Say whether a step takes far longer than it should, given what the engine has to do; to be called after
        `look`. Once it does, the next step that ends says that it does no more.
        """
        if not self._is_stuck and load.running:
            patience_s = self._pace.patience_s(load.prefill_tokens)
            self._is_stuck = patience_s is not None and now - max(self._stepped_at, self._free_at) > patience_s
        return self._is_stuck

    def ask(self, key: int) -> EngineRequest:
        """Return the tiny generation, under a number that nobody else has."""
        self._key = key
        self._tokens = []
        first = self._spec.vocab_size // 2
        prompt = [(first + 7 * number) % self._spec.vocab_size for number in range(NUM_PROMPT_TOKENS)]
        return EngineRequest(
            key=key,
            prompt=prompt,
            output=[],
            sampling=Sampling(temperature=0.0),
            stopping=Stopping(max_tokens=NUM_TOKENS, ignore_eos=True),
            eos_token_ids=frozenset(),
        )

    def take(self, step: Step, now: float) -> Step:
        """Note a step and return it without what was asked here."""
        self._stepped_at = now
        self._is_stuck = False
        self._pace.note(step.stats)
        if step.ended:
            for ended in step.ended:
                is_broken = ended.reason == "abort" and not ended.error
                self._num_broken = self._num_broken + 1 if is_broken else 0
        return step if self._key is None else self._take_own(step)

    def _take_own(self, step: Step) -> Step:
        key = self._key
        rows = [row for row, each in enumerate(step.keys) if each != key]
        self._tokens += [token for each, token in zip(step.keys, step.tokens, strict=True) if each == key]
        if any(ended.key == key for ended in step.ended):
            self._key = None
            self._expected = self._expected or self._tokens
            is_wrong = len(self._tokens) < NUM_TOKENS or self._tokens != self._expected
            self._num_wrong = self._num_wrong + 1 if is_wrong else 0
        places = {row: place for place, row in enumerate(rows)}
        return replace(
            step,
            keys=[step.keys[row] for row in rows],
            tokens=[step.tokens[row] for row in rows],
            ended=[ended for ended in step.ended if ended.key != key],
            logprobs=[replace(each, row=places[each.row]) for each in step.logprobs if each.row in places],
        )
