"""Pure. Which tokens a sequence has seen and how often it produced them: what penalties are computed from."""

from array import array
from collections import Counter
from collections.abc import Iterable


class TokenHistory:
    """The distinct tokens of a sequence; adding one costs no pass over the rest.

    A table over the whole vocabulary would cost each step more than the model on a CPU; texts use few distinct tokens.
    """

    __slots__ = ("_index", "counts", "ids")

    def __init__(self, prompt: Iterable[int], output: Iterable[int]) -> None:
        produced = Counter(output)
        self.ids = array("q", dict.fromkeys((*prompt, *produced)))
        """Distinct tokens of prompt and output."""
        self.counts = array("f", [produced[token] for token in self.ids])
        """How often each of `ids` was produced; 0 where it is in the prompt only."""
        self._index = {token: index for index, token in enumerate(self.ids)}

    def add(self, token: int) -> None:
        """Count one more produced token."""
        index = self._index.setdefault(token, len(self.ids))
        if index == len(self.ids):
            self.ids.append(token)
            self.counts.append(1)
        else:
            self.counts[index] += 1
