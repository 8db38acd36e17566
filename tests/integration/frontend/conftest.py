"""A stage for a frontend: a broker, a worker that does what the test says, and HTTP clients."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bus.codec import codec, encode
from bus.config import BusConfig, FrontendConfig
from bus.connection import open_bus
from bus.messages.base import pack_u32, unpack_u32
from bus.messages.fleet import ModelCard, WorkerCard, WorkerLoad
from bus.messages.inference import (
    Accepted,
    Cancel,
    Failed,
    Finished,
    GenerateJob,
    LatencyClass,
    StepBatch,
    TokenLogprobs,
)
from bus.protocol import Bus, ConsumerSpec, Delivery, Incoming
from bus.registry import keep_card, keep_shared_card, new_id
from bus.subjects import ANY_WORKER, Subjects, slug
from bus.testing import MemoryBroker
from frontend.doors.server import listen
from frontend.service import Frontend

MODEL = "tiny"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
LOREM = 'The quick brown fox jumps over the lazy dog. 你好 😀 "quotes" and it goes on, and on, and on. What is Busway?'

Connect = Callable[[str], AbstractAsyncContextManager[Bus]]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small byte-level BPE."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([LOREM] * 20, trainer)
    return made


class FakeWorker:
    """Speaks a worker's messages; which tokens come, and when, is the test's business."""

    def __init__(self, bus: Bus, tokenizer: Tokenizer, name: str, template: str = TEMPLATE) -> None:
        self.bus = bus
        self.tokenizer = tokenizer
        self.name = name
        self.template = template
        self.jobs: list[GenerateJob] = []
        self.cancelled: list[int] = []
        self.script: Callable[[GenerateJob], None] | None = None
        """Called with each job; None leaves jobs to the test."""
        self.is_silent = False
        self.takes_jobs = True
        self._changed = anyio.Event()
        self._seqs: dict[str, int] = {}

    @asynccontextmanager
    async def run(
        self, *, max_model_len: int = 512, with_cards: bool = True, latency_class: LatencyClass = "standard"
    ) -> AsyncIterator[None]:
        """Be there: cards, heartbeats, jobs of one class, commands."""
        config = json.dumps({"chat_template": self.template, "eos_token": "<|end|>"}).encode()
        files = {
            "tokenizer.json": await self.bus.put_blob(self.tokenizer.to_str().encode()),
            "tokenizer_config.json": await self.bus.put_blob(config),
        }
        model_card = ModelCard(
            model=MODEL,
            max_model_len=max_model_len,
            vocab_size=self.tokenizer.get_vocab_size(),
            eos_token_ids=[0],
            files=files,
            created_at=1234.5,
        )
        worker_card = WorkerCard(
            worker=self.name,
            model=MODEL,
            engine="fake",
            roles=["both"],
            slots=8,
            block_size=16,
            num_blocks=100,
            max_model_len=max_model_len,
            host="here",
            pid=1,
            version="0",
            started_at=0.0,
        )
        consumer = ConsumerSpec(
            stream="WORK",
            name=f"any-{MODEL}-both-{latency_class}",
            filter_subject=self.bus.subjects.work(MODEL, "both", ANY_WORKER, latency_class),
        )
        commands = self.bus.subscribe(self.bus.subjects.ctl(self.name), self._on_command)
        async with AsyncExitStack() as stack:
            if with_cards:
                await stack.enter_async_context(keep_shared_card(self.bus, f"model.{slug(MODEL)}", model_card))
                await stack.enter_async_context(keep_card(self.bus, f"worker.{self.name}", worker_card))
            pull = await stack.enter_async_context(self.bus.pull(consumer, self._on_job))
            pull.grant(1000)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._beat)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
                    commands.unsubscribe()

    async def wait_jobs(self, count: int, timeout_s: float = 30.0) -> GenerateJob:
        """Wait until so many jobs came; return the last."""
        await self._wait(lambda: len(self.jobs) >= count, timeout_s)
        return self.jobs[count - 1]

    async def wait_cancelled(self, ticket: int, timeout_s: float = 30.0) -> None:
        await self._wait(lambda: ticket in self.cancelled, timeout_s)

    async def _wait(self, is_met: Callable[[], bool], timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            while not is_met():
                self._changed = anyio.Event()
                await self._changed.wait()
        assert is_met(), f"jobs {len(self.jobs)}, cancelled {self.cancelled}"

    def say(
        self,
        job: GenerateJob,
        text: str | list[int] = "",
        *,
        reason: Any = None,
        at: int | None = None,
        logprobs: bool = False,
        failed: tuple[str, bool] | None = None,
    ) -> None:
        """Send the tokens of `text` as one step, from offset `at` (default: after the job's output)."""
        tokens = self.tokenizer.encode(text).ids if isinstance(text, str) else text
        start = len(job.output) // 4 if at is None else at
        rows = range(start, start + len(tokens))
        end = [Finished(job.ticket, start + len(tokens), reason, 3)] if reason else []
        self.send(
            job.frontend,
            tickets=pack_u32([job.ticket] * len(tokens)),
            offsets=pack_u32(rows),
            tokens=pack_u32(tokens),
            accepted=[Accepted(job.ticket)],
            finished=end,
            failed=[Failed(job.ticket, failed[0], "the fake worker says so", failed[1])] if failed else [],
            logprobs=[TokenLogprobs(job.ticket, row, -0.5, [5, 6], [-0.5, -1.5]) for row in rows] if logprobs else [],
        )

    def send(self, frontend: str, **batch: Any) -> None:
        """Send one step batch."""
        seq = self._seqs.get(frontend, 0)
        self._seqs[frontend] = seq + 1
        message = StepBatch(worker=self.name, seq=seq, **batch)
        self.bus.publish(self.bus.subjects.out(frontend, self.name), encode(message))

    def echo(self, job: GenerateJob, text: str = LOREM, reason: str = "stop") -> None:
        """A script: the whole text, token by token, within the job's bounds."""
        tokens = self.tokenizer.encode(text).ids[: job.stopping.max_tokens]
        done = len(job.output) // 4
        ending = reason if len(tokens) < job.stopping.max_tokens else "length"
        for offset in range(done, len(tokens)):
            self.say(job, [tokens[offset]], at=offset, reason=ending if offset + 1 == len(tokens) else None)

    def _on_job(self, delivery: Delivery) -> None:
        if not self.takes_jobs:
            delivery.nak(0.05)
            return
        delivery.ack()
        job = codec(GenerateJob).decode(delivery.payload)
        self.jobs.append(job)
        self._changed.set()
        if self.script is not None:
            self.script(job)

    def _on_command(self, incoming: Incoming) -> None:
        cancel = codec(Cancel).decode(incoming.payload)
        self.cancelled += unpack_u32(cancel.tickets).tolist()
        self._changed.set()

    async def _beat(self) -> None:
        load = WorkerLoad(
            worker=self.name,
            model=MODEL,
            running=0,
            waiting=0,
            free_blocks=1,
            num_blocks=1,
            prefill_tokens=0,
            step_s=0.0,
            at=time.time(),
        )
        while True:
            if not self.is_silent:
                self.bus.publish(self.bus.subjects.load(slug(MODEL), self.name), encode(load))
            await anyio.sleep(0.1)


class Stage:
    """A running frontend, a worker, and what tests do with them."""

    def __init__(
        self, connect: Connect, frontend: Frontend, worker: FakeWorker, bus: Bus, tokenizer: Tokenizer
    ) -> None:
        self.connect = connect
        self.frontend = frontend
        self.worker = worker
        self.bus = bus
        self.tokenizer = tokenizer
        self.url = frontend.url
        self.address = address_of(frontend.url)

    async def send(self, data: bytes, url: str = "") -> anyio.abc.SocketStream:
        """Open a connection, to another frontend if its `url` is given, and write."""
        stream = await anyio.connect_tcp(*(address_of(url) if url else self.address))
        await stream.send(data)
        return stream

    async def exchange(self, data: bytes, timeout_s: float = 30.0, url: str = "") -> tuple[int, dict[str, str], bytes]:
        """Write bytes and read one response to the end of the connection; status, headers, body as sent."""
        async with await self.send(data, url) as stream:
            answer = b""
            with anyio.fail_after(timeout_s):
                try:
                    while True:
                        answer += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(status.split(" ")[1]), headers, body

    async def post(self, path: str, body: Any, *headers: str) -> tuple[int, dict[str, str], Any]:
        """POST JSON (or bytes as they are) and read the JSON answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, found, answer = await self.exchange(request(path, data, *headers))
        if found.get("transfer-encoding") == "chunked":
            answer = dechunk(answer)
        return status, found, json.loads(answer) if answer.startswith(b"{") else answer

    async def get(self, path: str, method: str = "GET", url: str = "") -> tuple[int, dict[str, str], Any]:
        """GET and read the JSON answer, if it is one."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        status, found, answer = await self.exchange(head.encode(), url=url)
        return status, found, json.loads(answer) if answer.startswith(b"{") else answer

    async def wait_ready(self, timeout_s: float = 30.0, url: str = "") -> None:
        """Wait until requests are served."""
        with anyio.fail_after(timeout_s):
            while (await self.get("/ready", url=url))[0] != 200:  # noqa: ASYNC110
                await anyio.sleep(0.01)


def address_of(url: str) -> tuple[str, int]:
    """Return where to connect."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def request(path: str, data: bytes, *headers: str) -> bytes:
    """Render a POST that closes its connection."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def dechunk(data: bytes) -> bytes:
    """Undo chunked encoding; fails when it is not whole."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert data == b"\r\n"
            return body
        body, data = body + data[:length], data[length + 2 :]


def events(body: bytes) -> list[Any]:
    """Parse server-sent events; the last must be `[DONE]`."""
    *lines, done, end = body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture
def stage(tokenizer: Tokenizer) -> Callable[..., AbstractAsyncContextManager[Stage]]:
    """Open a stage on a broker in memory, or on the NATS server at `url`."""

    @asynccontextmanager
    async def open_stage(
        *,
        url: str = "",
        namespace: str = "busway",
        broker: MemoryBroker | None = None,
        template: str = TEMPLATE,
        latency_class: LatencyClass = "standard",
        **config: Any,
    ) -> AsyncIterator[Stage]:
        broker = broker or MemoryBroker()

        def connect(name: str) -> AbstractAsyncContextManager[Bus]:
            return open_bus(BusConfig(url=url), Subjects(namespace), name=name) if url else broker.connect(name)

        async with connect("worker") as worker_bus, connect("frontend") as bus:
            await bus.ensure()
            name = new_id("f")
            settings = FrontendConfig(port=0, **config)
            frontend = Frontend(bus, name, settings, listen("127.0.0.1", 0))
            worker = FakeWorker(worker_bus, tokenizer, new_id("w"), template)
            opened = Stage(connect, frontend, worker, bus, tokenizer)
            async with worker.run(latency_class=latency_class), anyio.create_task_group() as tasks:
                tasks.start_soon(frontend.run)
                await opened.wait_ready()
                yield opened
                frontend.stop()

    return open_stage
