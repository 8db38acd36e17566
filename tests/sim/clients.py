"""I/O (in memory). Clients: they ask frontends over HTTP, write down what they see, and some leave before the end."""

from itertools import pairwise
from random import Random

import anyio
import msgspec

from tests.history import Asked, Ended, Ending, Event, Expected, Shown, expect
from tests.sim.http import Client, Refused
from tests.sim.model import EOS, NAME, decode, model
from tests.sim.stage import Stage

RETRY_S = 0.1
"""When a client that found no frontend tries again."""
LEAVES = 0.06
"""Share of clients that want no more after a while."""
LONG, LONGS = 1200, 0.04
"""Tokens of a prompt that goes from worker to worker while it is computed, and share of such prompts."""
HURRIES = 0.08
"""Share of clients to whom an answer that is late is of no use."""
STOPS = 0.15
"""Share of clients that want no more after some letters."""


class _Choice(msgspec.Struct):
    text: str = ""
    index: int = 0
    token_ids: list[int] = []
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Error(msgspec.Struct):
    code: str | None = None
    type: str = ""


class _Answer(msgspec.Struct):
    """A chunk of a stream, an answer in one piece, or an error."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_answers = msgspec.json.Decoder(_Answer)


class Question(msgspec.Struct, frozen=True):
    """What one client asks."""

    name: str
    prompt: tuple[int, ...]
    num_tokens: int
    is_stream: bool
    shows_tokens: bool
    num_choices: int = 1
    leaves_after_s: float | None = None
    timeout_s: float | None = None
    """After that, the answer is of no use to the client."""
    stop: str = ""
    hints: dict[str, object] = {}
    """Others than `timeout_s`: they may change where and when something is computed, never what."""

    @property
    def names(self) -> list[str]:
        """Return the names of its choices, each a request of its own in the history."""
        return [f"{self.name}.{index}" if index else self.name for index in range(self.num_choices)]

    def body(self) -> bytes:
        """Return the body of `POST /v1/completions`."""
        body: dict[str, object] = {
            "model": NAME,
            "prompt": self.prompt,
            "max_tokens": self.num_tokens,
            "ignore_eos": True,
            "n": self.num_choices,
            "stream": self.is_stream,
        }
        if self.is_stream:
            body["stream_options"] = {"include_usage": True}
        if self.shows_tokens:
            body["return_token_ids"] = True
        if self.stop:
            body["stop"] = self.stop
        if self.timeout_s is not None:
            body["busway"] = {**self.hints, "timeout_s": self.timeout_s}
        elif self.hints:
            body["busway"] = self.hints
        return msgspec.json.encode(body)


def draw_question(rng: Random, name: str, *, may_leave: bool = True) -> Question:
    """Draw a question; some share the beginning of their prompts, more of them than an engine can keep."""
    kind, length = rng.randrange(12), LONG if rng.random() < LONGS else rng.choice((0, 16, 64, 200))
    prefix = [EOS + 1 + (kind * 7 + place) % 200 for place in range(length)]
    own = [rng.randrange(1, model().vocab_size) for _ in range(rng.randint(1, 40))]
    num_tokens = rng.choice((1, 4, 12, 30, 60, 120))
    stop = _draw_stop(rng, expect(prefix + own, num_tokens, model().vocab_size, decode).text)
    return Question(
        name,
        tuple(prefix + own),
        num_tokens,
        is_stream=rng.random() < 0.8,
        shows_tokens=not stop and rng.random() < 0.5,
        num_choices=rng.choices((1, 2, 3), (0.85, 0.1, 0.05))[0],
        leaves_after_s=rng.random() if may_leave and rng.random() < LEAVES else None,
        timeout_s=rng.choice((0.3, 1.0, 4.0)) if rng.random() < HURRIES else None,
        stop=stop,
        hints=_draw_hints(rng),
    )


def _draw_stop(rng: Random, text: str) -> str:
    """Draw two letters that come in a text, seldom; empty: the text goes to its end."""
    pairs = [pair for pair in map("".join, pairwise(text)) if pair.isascii() and pair.isalpha()]
    return rng.choice(pairs) if pairs and rng.random() < STOPS else ""


def _draw_hints(rng: Random) -> dict[str, object]:
    hints: dict[str, object] = {}
    if rng.random() < 0.2:
        hints["latency_class"] = rng.choice(("interactive", "standard", "batch"))
    if rng.random() < 0.2:
        hints["priority"] = rng.randint(-5, 5)
    if rng.random() < 0.2:
        hints["session"] = f"s{rng.randrange(3)}"
    if rng.random() < 0.2:
        hints["cache_salt"] = f"salt{rng.randrange(2)}"
    if rng.random() < 0.1:
        hints["pin_ttl_s"] = rng.choice((0.5, 5.0, 60.0))
    return hints


def what_is_due(question: Question) -> Expected:
    """Return what the oracle says to a question; of what stops early, how many tokens it takes is not said."""
    whole = expect(question.prompt, question.num_tokens, model().vocab_size, decode)
    if not question.stop:
        return whole
    return Expected(whole.tokens, whole.text[: whole.text.index(question.stop)], "stop")


class _Reader:
    """Reads the answer to one question into the history."""

    def __init__(self, question: Question, history: list[Event], stage: Stage) -> None:
        self.over = anyio.Event()
        self._question = question
        self._history = history
        self._stage = stage
        self._rest = b""
        self._reasons: dict[int, str] = {}
        self._is_done = not question.is_stream
        self._error = ""
        self._num_tokens: int | None = None

    def on_body(self, data: bytes) -> None:
        """Take bytes of the body."""
        self._rest += data
        if not self._question.is_stream:
            return
        *events, self._rest = self._rest.split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                self._is_done = True
            elif event.startswith(b"data: "):
                self._read(event.removeprefix(b"data: "))

    def on_end(self, is_complete: bool) -> None:
        """The answer is over, or the connection."""
        if is_complete and self._rest:
            self._read(self._rest)
        if not is_complete:
            self.end("left", "its frontend died")
        elif self._error:
            self.end("failed", self._error)
        else:
            self.end("finished", "" if self._is_done else "no [DONE]")

    def end(self, how: Ending, why: str) -> None:
        """Write down the end of all choices; each may have said before why it finished."""
        now, question = self._stage.loop.time(), self._question
        for index, name in enumerate(question.names):
            reason = why or self._reasons.get(index, "no reason")
            # Usage is of all choices together.
            used = None
            if self._num_tokens is not None and not question.stop:
                used = self._num_tokens - question.num_tokens * (len(question.names) - 1)
            self._history.append(Ended(name, now, how, reason, used))
        trace = self._stage.trace
        trace.note(f"client.{how}", f"{question.name} {why}")
        trace.counts["client.stopped"] += "stop" in self._reasons.values()
        trace.counts["client.late"] += why == "deadline_passed"
        self.over.set()

    def _read(self, data: bytes) -> None:
        answer = _answers.decode(data)
        if answer.error is not None:
            self._error = answer.error.code or answer.error.type
        if answer.usage is not None:
            self._num_tokens = answer.usage.completion_tokens
        for choice in answer.choices:
            if choice.finish_reason:
                self._reasons[choice.index] = choice.finish_reason
            if choice.text or choice.token_ids:
                name, now = self._question.names[choice.index], self._stage.loop.time()
                self._history.append(Shown(name, now, choice.text, tuple(choice.token_ids)))


async def ask(stage: Stage, rng: Random, question: Question, history: list[Event]) -> None:
    """Ask any frontend that listens, and wait for the end of the answer."""
    reader = _Reader(question, history, stage)
    client = Client(reader.on_body, reader.on_end)
    while not await _send(stage, rng, client, question):  # noqa: ASYNC110 (a client that tries again)
        await anyio.sleep(RETRY_S)
    expected = what_is_due(question)
    history += [Asked(name, stage.loop.time(), expected) for name in question.names]
    stage.trace.note("client.asked", question.name)
    with anyio.move_on_after(question.leaves_after_s):
        await reader.over.wait()
    if not reader.over.is_set():
        client.leave()
        reader.end("left", "it wanted to")


async def _send(stage: Stage, rng: Random, client: Client, question: Question) -> bool:
    doors = stage.doors()
    if not doors:
        return False
    try:
        client.send(rng.choice(doors), "POST", "/v1/completions", question.body())
    except Refused:
        return False
    return True
