"""Pure. The choices of one answer: they run as requests of their own and end as one."""

from collections.abc import Callable
from typing import Protocol

from bus.errors import BuswayError
from frontend.deltas import Choice, WholeAnswer
from frontend.request import Usage


class Sink(Protocol):
    """Where rendered bytes leave: a connection or a subject. Nothing here waits; a sink that lost its client drops."""

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Send three parts as one piece."""

    def close(self, rest: bytes, last: bytes) -> None:
        """Send two last pieces, the first of which may be empty, and end."""

    def fail(self, error: BuswayError, last: bytes) -> None:
        """End: with `last` when something was sent before, else with `error` alone."""


class _Total:
    """Usage of several choices: a prompt counts once, however many choices it has."""

    __slots__ = ("_left", "_per_prompt", "_used")

    def __init__(self, num_choices: int, per_prompt: int) -> None:
        self._left = num_choices
        self._per_prompt = per_prompt
        self._used = Usage(0, 0, 0)

    def add(self, number: int, usage: Usage) -> bool:
        """Count a choice that ended; say whether it was the last."""
        used = self._used
        is_first = number % self._per_prompt == 0
        self._used = Usage(
            used.prompt_tokens + (usage.prompt_tokens if is_first else 0),
            used.output_tokens + usage.output_tokens,
            used.cached_tokens + (usage.cached_tokens if is_first else 0),
            used.reasoning_tokens + usage.reasoning_tokens,
        )
        self._left -= 1
        return not self._left

    @property
    def used(self) -> Usage:
        return self._used


class JointStream:
    """Choices of a stream on their way to one sink: it ends with the last of them, or with the first that fails."""

    __slots__ = ("_ending", "_is_over", "_sink", "_total", "send")

    def __init__(
        self, sink: Sink, ending: Callable[[Usage], bytes], *, num_choices: int = 1, per_prompt: int = 1
    ) -> None:
        """`ending` renders what comes after the last choice."""
        self._sink = sink
        self._ending = ending
        self._total = _Total(num_choices, per_prompt) if num_choices > 1 else None
        self._is_over = False
        self.send: Callable[[bytes, bytes, bytes], None] = sink.send if num_choices == 1 else self._send
        """Send three parts of a choice as one piece."""

    def _send(self, head: bytes, text: bytes, tail: bytes) -> None:
        if not self._is_over:
            self._sink.send(head, text, tail)

    def close(self, number: int, rest: bytes, last: bytes, usage: Usage) -> None:
        """Choice `number` ends with these two pieces, the first of which may be empty."""
        if self._is_over:
            return
        total = self._total
        if total is None or total.add(number, usage):
            self._is_over = True
            self._sink.close(rest, last + self._ending(usage if total is None else total.used))
        elif rest or last:
            self._sink.send(rest, last, b"")

    def fail(self, error: BuswayError, last: bytes) -> None:
        """A choice failed, and the answer with it."""
        if not self._is_over:
            self._is_over = True
            self._sink.fail(error, last)


class JointAnswer:
    """Choices of an answer in one piece."""

    __slots__ = ("_answer", "_choices", "_is_over", "_keep", "_sink", "_total")

    def __init__(
        self,
        sink: Sink,
        answer: WholeAnswer,
        *,
        num_choices: int = 1,
        per_prompt: int = 1,
        keep: Callable[[list[Choice]], list[Choice]] | None = None,
    ) -> None:
        """`keep` chooses among the choices, where more were made than are shown."""
        self._sink = sink
        self._answer = answer
        self._total = _Total(num_choices, per_prompt)
        self._choices: list[Choice] = []
        self._keep = keep
        self._is_over = False

    def finish(self, choice: Choice, usage: Usage) -> None:
        """A choice is complete."""
        if self._is_over:
            return
        self._choices.append(choice)
        if self._total.add(choice.number, usage):
            self._is_over = True
            choices = sorted(self._choices, key=lambda choice: choice.number)
            shown = choices if self._keep is None else self._keep(choices)
            self._sink.close(b"", self._answer.render(shown, self._total.used))

    def fail(self, error: BuswayError) -> None:
        """A choice failed, and the answer with it."""
        if not self._is_over:
            self._is_over = True
            self._sink.fail(error, b"")


def keep_best(choices: list[Choice], *, best_of: int, n: int) -> list[Choice]:
    """Return, of every `best_of` choices of a prompt, the `n` with the best mean log-probability, numbered anew."""
    kept: list[Choice] = []
    for start in range(0, len(choices), best_of):
        ranked = sorted(choices[start : start + best_of], key=_mean_logprob, reverse=True)
        kept += [choice._replace(number=len(kept) + place) for place, choice in enumerate(ranked[:n])]
    return kept


def _mean_logprob(choice: Choice) -> float:
    told = [piece.logprobs.logprob for piece in choice.pieces if piece.logprobs and piece.start >= 0]
    return sum(told) / len(told) if told else float("-inf")
