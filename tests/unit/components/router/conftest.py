"""Workers, requests and pools for tests of the router's decisions."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from bus.config import RouterConfig
from bus.messages.fleet import StepSample, WorkerCard, WorkerLoad
from components.router.pool import Pool
from components.router.request import Request, hash_chains
from kv_events.hashing import salt_hash
from kv_events.index import PrefixIndex

BLOCK = 64


def make_card(worker: str, **fields: Any) -> WorkerCard:
    known: dict[str, Any] = {
        "worker": worker,
        "model": "m",
        "engine": "mock",
        "roles": ["both"],
        "slots": 256,
        "block_size": BLOCK,
        "num_blocks": 16_384,
        "max_model_len": 131_072,
        "host": "h",
        "pid": 1,
        "version": "0",
        "started_at": 0.0,
        "max_running": 64,
    }
    return WorkerCard(**{**known, **fields})


def make_load(worker: str, **fields: Any) -> WorkerLoad:
    known: dict[str, Any] = {
        "worker": worker,
        "model": "m",
        "running": 0,
        "waiting": 0,
        "free_blocks": 16_384,
        "num_blocks": 16_384,
        "prefill_tokens": 0,
        "step_s": 0.0,
        "at": 0.0,
    }
    return WorkerLoad(**{**known, **fields})


def make_steps(count: int = 64, *, base_s: float = 0.01, token_s: float = 2e-5) -> list[StepSample]:
    """Return steps of an engine, some with prefill up to 8,192 tokens."""
    sizes = [0, 512, 4096, 8192]
    return [
        StepSample(base_s + token_s * sizes[n % 4], sizes[n % 4], 1 + n % 8, 1000 * (1 + n % 8)) for n in range(count)
    ]


class Stage:
    """A pool with trained workers, and a clock that tests move."""

    def __init__(self, workers: int, **settings: Any) -> None:
        self.now = 100.0
        self.index = PrefixIndex()
        self.pool = Pool(RouterConfig(**settings), self.index, random.Random(7))
        self._num_requests = 0
        for number in range(workers):
            self.pool.join(make_card(f"w-{number}"), self.now)
            for _ in range(5):
                self.report(f"w-{number}", steps=make_steps())

    def report(self, worker: str, **fields: Any) -> None:
        self.pool.report(make_load(worker, **fields), self.now)

    def tick(self, seconds: float) -> None:
        """Let time pass and workers report what is true if the model is."""
        self.now += seconds
        fleet = self.pool.fleet
        for worker, number in fleet.numbers.items():
            left_s = max(0.0, fleet.free_at[number] - self.now)
            self.report(worker, running=1 if left_s else 0, prefill_tokens=int(left_s / 2.2e-5))

    def request(self, tokens: bytes = b"", *, length: int = 1024, **fields: Any) -> Request:
        """Return a request for `tokens`, or for a prompt of `length` tokens that nobody else has."""
        self._num_requests += 1
        packed = tokens or self._num_requests.to_bytes(4, "little") * length
        known: dict[str, Any] = {
            "key": f"q-{self._num_requests}:0",
            "tenant": "default",
            "latency_class": "standard",
            "num_tokens": len(packed) // 4,
            "chains": hash_chains(packed, salt_hash("m"), self.pool.block_sizes()),
        }
        return Request(**{**known, **fields})

    def admit(self, request: Request, deadline: float | None = None) -> Any:
        return self.pool.admit(request, deadline, self.now)

    def plan(self) -> list[tuple[str, str]]:
        """Return keys and workers of what is placed now."""
        return [(placement.request.key, placement.choice.worker) for placement in self.pool.plan(self.now)]

    def place(self, request: Request) -> str:
        assert self.admit(request) is None
        placed = dict(self.plan())
        return placed.get(request.key, "")


@pytest.fixture
def stage() -> Callable[..., Stage]:
    return Stage


@pytest.fixture
def card() -> Callable[..., WorkerCard]:
    return make_card


@pytest.fixture
def load() -> Callable[..., WorkerLoad]:
    return make_load


@pytest.fixture
def steps() -> Callable[..., list[StepSample]]:
    return make_steps
