"""Pure. What one frontend is still to be told: columns of tokens, and who was accepted, finished or failed."""

from array import array
from bisect import bisect_left

from bus.messages.base import pack_u32
from bus.messages.inference import (
    Accepted,
    Embedding,
    Failed,
    Finished,
    PromptLogprobs,
    StepBatch,
    TokenLogprobs,
)

MAX_BATCH_ROWS = 2048
"""Rows of one message: with 20 logprobs each they stay below the 1 MiB that a plain nats-server lets through."""

MAX_BATCH_ENDS = 512
"""Entries of one message that say how an attempt went, of each kind."""

MAX_BATCH_PROMPTS = 4
"""Pieces of log-probabilities of prompts in one message, of up to 256 tokens each."""

MAX_BATCH_VECTORS = 8
"""Of up to 8,192 numbers each, which makes 256 KiB."""

MAX_ROWS_BESIDE = 256
"""Rows of a message that also holds what is said of prompts: all of it together stays below that limit."""

MAX_ROWS = 65_536
"""Rows kept while the broker is away; what a frontend would get late beyond that is not worth keeping."""


class Outbox:
    """Collects what steps bring for `frontend` until it goes out, in the order in which it must be read."""

    def __init__(self, frontend: str) -> None:
        self.frontend = frontend
        self.tickets: array[int] = array("I")
        self.offsets: array[int] = array("I")
        self.tokens: array[int] = array("I")
        self.accepted: list[Accepted] = []
        self.finished: list[Finished] = []
        self.failed: list[Failed] = []
        self.logprobs: list[TokenLogprobs] = []
        self._logprob_rows: list[int] = []
        self.prompt_logprobs: list[PromptLogprobs] = []
        self.embeddings: list[Embedding] = []
        self.num_sent = 0

    @property
    def is_empty(self) -> bool:
        return not (self.tickets or self.accepted or self.finished or self.failed or self._num_large)

    @property
    def is_overfull(self) -> bool:
        return len(self.tickets) > MAX_ROWS or self._num_large > MAX_BATCH_ENDS

    @property
    def _num_large(self) -> int:
        return len(self.prompt_logprobs) + len(self.embeddings)

    @property
    def _num_rows(self) -> int:
        """Rows of the next message; what is said of prompts goes before what follows from them."""
        is_behind = len(self.prompt_logprobs) > MAX_BATCH_PROMPTS or len(self.embeddings) > MAX_BATCH_VECTORS
        if is_behind:
            return 0
        return MAX_ROWS_BESIDE if self._num_large else MAX_BATCH_ROWS

    def append(self, ticket: int, offset: int, token: int) -> None:
        """Add one row."""
        self.tickets.append(ticket)
        self.offsets.append(offset)
        self.tokens.append(token)

    def add_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Add the log-probabilities of the row that was appended last."""
        self.logprobs.append(logprobs)
        self._logprob_rows.append(len(self.tickets) - 1)

    def next_batch(self, worker: str) -> StepBatch:
        """Return the next message; what it holds stays here until `mark_sent`. Ends come when all rows are out."""
        num_rows = self._num_rows
        rows = slice(0, num_rows)
        ends = slice(0, MAX_BATCH_ENDS if num_rows and len(self.tickets) <= num_rows else 0)
        return StepBatch(
            worker=worker,
            seq=self.num_sent,
            tickets=pack_u32(self.tickets[rows]),
            offsets=pack_u32(self.offsets[rows]),
            tokens=pack_u32(self.tokens[rows]),
            accepted=self.accepted[:MAX_BATCH_ENDS],
            finished=self.finished[ends],
            failed=self.failed[ends],
            logprobs=self.logprobs[: bisect_left(self._logprob_rows, num_rows)],
            prompt_logprobs=self.prompt_logprobs[:MAX_BATCH_PROMPTS],
            embeddings=self.embeddings[:MAX_BATCH_VECTORS],
        )

    def mark_sent(self) -> None:
        """Forget what the last `next_batch` held."""
        self.num_sent += 1
        num_rows = self._num_rows
        rows = slice(0, num_rows)
        ends = slice(0, MAX_BATCH_ENDS if num_rows and len(self.tickets) <= num_rows else 0)
        del self.prompt_logprobs[:MAX_BATCH_PROMPTS], self.embeddings[:MAX_BATCH_VECTORS]
        del self.accepted[:MAX_BATCH_ENDS], self.finished[ends], self.failed[ends]
        if self.logprobs:
            num_sent = bisect_left(self._logprob_rows, num_rows)
            del self.logprobs[:num_sent]
            self._logprob_rows = [row - num_rows for row in self._logprob_rows[num_sent:]]
        del self.tickets[rows], self.offsets[rows], self.tokens[rows]

    def tickets_inside(self) -> set[int]:
        """Return every ticket of which something waits here."""
        waiting = set(self.tickets)
        waiting.update(entry.ticket for entry in self.accepted)
        waiting.update(entry.ticket for entry in self.finished)
        waiting.update(entry.ticket for entry in self.prompt_logprobs)
        waiting.update(entry.ticket for entry in self.embeddings)
        return waiting

    def give_up(self, tickets: set[int], code: str, message: str) -> None:
        """Replace all that waits by one retryable failure for each of `tickets`."""
        self.failed = [entry for entry in self.failed if entry.ticket not in tickets]
        self.failed += [Failed(ticket, code, message, True) for ticket in sorted(tickets)]
        del self.tickets[:], self.offsets[:], self.tokens[:]
        self.accepted, self.finished, self.logprobs, self._logprob_rows = [], [], [], []
        self.prompt_logprobs, self.embeddings = [], []
