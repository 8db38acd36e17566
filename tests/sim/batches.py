"""I/O (in memory). A client with a batch: uploads lines, leaves them to the system, and reads what came of each."""

from functools import partial
from random import Random

import anyio
import msgspec

from tests.history import Asked, Ended, Event, Shown, expect
from tests.sim.http import Client, Refused
from tests.sim.model import EOS, NAME, decode, model
from tests.sim.stage import Stage

NUM_LINES = 12
RETRY_S = 0.5
PATIENCE_S = 300.0
"""A batch whose frontends died again and again is taken up ever more slowly, after two minutes at last."""
ENDED = ("completed", "failed", "expired", "cancelled")
_FORM = "multipart/form-data; boundary=sim"


class _Id(msgspec.Struct):
    id: str


class _Batch(msgspec.Struct):
    status: str
    output_file_id: str | None = None


class _Choice(msgspec.Struct):
    text: str
    finish_reason: str


class _Body(msgspec.Struct):
    choices: list[_Choice]


class _Response(msgspec.Struct):
    body: _Body


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response


class BatchClient:
    """One batch. What fails is asked again at any frontend: that is how such a client has to be."""

    def __init__(self, stage: Stage, rng: Random, name: str, history: list[Event]) -> None:
        self._stage = stage
        self._rng = rng
        self._name = name
        self._history = history
        self._prompts = [[EOS + 1 + rng.randrange(200) for _ in range(20)] for _ in range(NUM_LINES)]
        self._num_tokens = [rng.randint(1, 60) for _ in range(NUM_LINES)]
        self._batch = ""
        self._created = anyio.Event()

    async def begin(self, after_s: float) -> None:
        """Upload the lines and create the batch; from then on each of them must end once."""
        await anyio.sleep(after_s)
        lines = [
            msgspec.json.encode(
                {
                    "custom_id": f"{self._name}.{number}",
                    "method": "POST",
                    "url": "/v1/completions",
                    "body": {"model": NAME, "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True},
                }
            )
            for number, (prompt, num_tokens) in enumerate(zip(self._prompts, self._num_tokens, strict=True))
        ]
        form = (
            b'--sim\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--sim\r\ncontent-disposition: form-data; name="file"; filename="lines.jsonl"\r\n\r\n%b\r\n--sim--\r\n'
        ) % b"\n".join(lines)
        file = msgspec.json.decode(await self._insist("POST", "/v1/files", form, _FORM), type=_Id).id
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        created = await self._insist("POST", "/v1/batches", msgspec.json.encode(body))
        self._batch = msgspec.json.decode(created, type=_Id).id
        self._stage.trace.note("batch.created", self._batch)
        for number, (prompt, num_tokens) in enumerate(zip(self._prompts, self._num_tokens, strict=True)):
            expected = expect(prompt, num_tokens, model().vocab_size, decode)
            self._history.append(Asked(f"{self._name}.{number}", self._stage.loop.time(), expected))
        self._created.set()

    async def end(self) -> None:
        """Wait until the batch has ended, for `PATIENCE_S`, and write down what came of its lines."""
        with anyio.move_on_after(PATIENCE_S):
            await self._created.wait()
            while True:
                batch = msgspec.json.decode(await self._insist("GET", f"/v1/batches/{self._batch}"), type=_Batch)
                if batch.status in ENDED:
                    break
                await anyio.sleep(2 * RETRY_S)
            self._stage.trace.note(f"batch.{batch.status}", self._batch)
            if batch.output_file_id is None:
                return
            content = await self._insist("GET", f"/v1/files/{batch.output_file_id}/content")
            for line in msgspec.json.Decoder(_Line).decode_lines(content):
                choice, now = line.response.body.choices[0], self._stage.loop.time()
                self._history.append(Shown(line.custom_id, now, choice.text))
                self._history.append(Ended(line.custom_id, now, "finished", choice.finish_reason))

    async def _insist(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        """Ask until a frontend answers with success."""
        while True:
            pieces: list[bytes] = []
            over = anyio.Event()
            client = Client(pieces.append, partial(_note_end, over))
            try:
                client.send(self._rng.choice(self._stage.doors() or [""]), method, path, body, kind)
            except Refused:
                over.set()
            await over.wait()
            if client.status == 200 and client.is_complete:
                return b"".join(pieces)
            await anyio.sleep(RETRY_S)


def _note_end(over: anyio.Event, _is_complete: bool) -> None:
    over.set()
