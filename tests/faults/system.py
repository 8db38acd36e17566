"""I/O. A system of whole processes for a test to break: each started by itself, on an address of the bus of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from random import Random

import anyio

from bus.config import BusConfig, Config
from bus.server import ServerFiles, free_port, prepare, wait_answering
from components.chaos.ask import Target
from components.chaos.history import Question
from components.engines.mock.oracle import mock_token, plain_ids, prompt_seed
from components.supervisor.probe import wait_until_ready

ROOT = Path(__file__).parents[2]
MODEL = "mock"
STEP_S = 0.02
READY_S = 30.0
Settings = Mapping[str, object]


class System:
    """Processes by name: `nats`, `worker-0`, `frontend-0`, `router-0`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.server: ServerFiles = prepare(str(folder))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._settings = {"worker.engine": "mock", "worker.served_name": MODEL, "mock.step_base_s": STEP_S, **settings}
        self._ports: dict[str, int] = {}

    @property
    def config(self) -> Config:
        """What a client of the bus needs."""
        return Config(bus=BusConfig(url=self.server.url))

    def target(self, frontend: str = "frontend-0", **options: float) -> Target:
        """Return where to ask."""
        return Target(host="127.0.0.1", port=self._ports[frontend], model=MODEL, **options)  # type: ignore[arg-type]

    async def start_nats(self) -> None:
        self._spawn("nats", self.server.command, {})
        await wait_answering(self.server.port)

    def start(
        self,
        name: str,
        *,
        bus_url: str = "",
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
        settings: Settings | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start a worker, frontend or router; `root` is the code that it runs, `prefix` a command to run it with."""
        role = name.partition("-")[0]
        mine = {"bus.url": bus_url or self.server.url, **self._settings, **(settings or {})}
        if role == "frontend":
            mine["frontend.port"] = self._ports.setdefault(name, free_port())
        argv = [*prefix, sys.executable, "-P", "-m", "components.cli", role]
        for key, value in mine.items():
            argv += ["--set", f"{key}={json.dumps(value) if not isinstance(value, str) else value}"]
        self._spawn(name, argv, {"PYTHONPATH": str(root), **(environment or {})})

    def _spawn(self, name: str, argv: list[str], environment: Mapping[str, str]) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BUSWAY__")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv,
                cwd=self.folder,
                env={**kept, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def wait_ready(self, num_workers: int) -> None:
        """Wait until every frontend serves and so many workers are in the pool."""
        with anyio.fail_after(READY_S):
            for port in self._ports.values():
                await wait_until_ready("127.0.0.1", port)
        await until(lambda: sum(bool(self.events(name, "worker.started")) for name in self.processes) >= num_workers)

    def send(self, name: str, number: signal.Signals) -> None:
        """Signal a process."""
        self.processes[name].send_signal(number)

    def kill(self, *names: str) -> None:
        """End processes as a crash does, all at once."""
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes[name].wait()

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Freeze processes while the context is open."""
        for name in names:
            self.send(name, signal.SIGSTOP)
        try:
            yield
        finally:
            for name in names:
                self.send(name, signal.SIGCONT)

    def close(self) -> None:
        """End all: what is asked to drain and does not is killed; the broker goes last."""
        for name in sorted(self.processes, key=lambda name: name == "nats"):
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, name: str, event: str) -> list[dict[str, object]]:
        """Return the entries of a process's log with this name."""
        lines = [line for line in self.log(name).splitlines() if f'"{event}"' in line and line.startswith("{")]
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    def num_fds(self, name: str) -> int:
        return len(os.listdir(f"/proc/{self.processes[name].pid}/fd"))

    def rss_bytes(self, name: str) -> int:
        return int(Path(f"/proc/{self.processes[name].pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds_of_day(event: Mapping[str, object]) -> float:
    """Return when a log entry was written, in unix seconds."""
    return datetime.fromisoformat(str(event["timestamp"])).timestamp()


async def until(is_met: Callable[[], bool], within_s: float = READY_S) -> float:
    """Wait for a condition that nobody signals; return the seconds that it took, fail after a deadline."""
    started = time.monotonic()
    with anyio.move_on_after(within_s):
        while not is_met():  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert is_met(), f"not so after {within_s} s"
    return time.monotonic() - started


async def make_questions(
    target: Target,
    count: int,
    *,
    max_tokens: int = 64,
    seed: int = 0,
    lengths: Sequence[int] = (8, 24, 40, 56, 72, 88),
) -> list[Question]:
    """Return prompts of token ids, of these lengths in turn, with the texts that the mock engine's oracle says."""
    vocab_size = json.loads((ROOT / "components/builtin/model/config.json").read_bytes())["vocab_size"]
    ids, rng = plain_ids(vocab_size), Random(seed)
    questions = []
    for number in range(count):
        prompt = tuple(rng.choices(ids, k=lengths[number % len(lengths)]))
        tokens = [mock_token(prompt_seed(prompt), offset, vocab_size) for offset in range(max_tokens)]
        questions.append(Question(prompt, max_tokens, await _decode(target, tokens)))
    return questions


async def _decode(target: Target, tokens: list[int]) -> str:
    body = json.dumps({"model": target.model, "tokens": tokens}).encode()
    head = f"POST /detokenize HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    async with await anyio.connect_tcp(target.host, target.port) as stream:
        await stream.send(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        answer = b"".join([chunk async for chunk in stream])
    text: str = json.loads(answer.partition(b"\r\n\r\n")[2])["prompt"]
    return text
