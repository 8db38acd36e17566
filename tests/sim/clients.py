"""I/O (in memory). Clients: they ask frontends over HTTP, write down what they see, and some leave before the end."""

from random import Random

import anyio
import msgspec

from tests.history import Asked, Ended, Ending, Event, Shown, expect
from tests.sim.http import Client, Refused
from tests.sim.model import EOS, NAME, decode, model
from tests.sim.stage import Stage

RETRY_S = 0.1
"""When a client that found no frontend tries again."""
LEAVES = 0.06
"""Share of clients that want no more after a while."""


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
    num_choices: int
    leaves_after_s: float | None

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
        return msgspec.json.encode(body)


def draw_question(rng: Random, name: str, *, may_leave: bool = True) -> Question:
    """Draw a question; some share the beginning of their prompts, so that there is something to cache."""
    prefix = [EOS + 1 + (rng.randrange(4) * 7 + place) % 200 for place in range(rng.choice((0, 16, 64)))]
    own = [rng.randrange(1, model().vocab_size) for _ in range(rng.randint(1, 40))]
    return Question(
        name,
        tuple(prefix + own),
        rng.choice((1, 4, 12, 30, 60, 120)),
        is_stream=rng.random() < 0.8,
        shows_tokens=rng.random() < 0.5,
        num_choices=1 if rng.random() < 0.85 else 2,
        leaves_after_s=rng.random() if may_leave and rng.random() < LEAVES else None,
    )


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
            elif event.startswith(b": "):
                self._stage.trace.counts["path.keep_alive"] += 1

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
            used = (
                None if self._num_tokens is None else self._num_tokens - question.num_tokens * (len(question.names) - 1)
            )
            self._history.append(Ended(name, now, how, reason, used))
        self._stage.trace.note(f"client.{how}", f"{question.name} {why}")
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
    expected = expect(question.prompt, question.num_tokens, model().vocab_size, decode)
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
