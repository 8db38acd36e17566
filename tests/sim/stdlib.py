"""I/O (none). What of the standard library differs from run to run, made to follow from a seed and from virtual time.

Components take time, randomness and threads from the standard library; here these are its only sources that are left.
"""

import asyncio
import gc
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, TypeVarTuple, Unpack
from unittest.mock import patch

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio._backends import _asyncio as backend

from tests.sim.loop import PROCESS

EPOCH_S = 1_800_000_000.0
"""The time of day at which every run begins."""

T = TypeVar("T")
Args = TypeVarTuple("Args")


class WallClock:
    """The time of day of each process; `shift` is what someone did to its clock."""

    def __init__(self) -> None:
        self.shifts: dict[str, float] = {}

    def now(self) -> float:
        """Return unix seconds."""
        return EPOCH_S + loop_time() + self.shifts.get(PROCESS.get(), 0.0)


def loop_time() -> float:
    """Return the seconds since the run began."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return 0.0


@contextmanager
def deterministic(seed: int, wall: WallClock) -> Iterator[None]:
    """Take time from the event loop and randomness from `seed`; run threads' work at once.

    anyio keeps its scopes in sets, which are walked in the order of hashes, which are addresses: here, of insertion.
    """
    entropy = random.Random(f"entropy {seed}")
    seed_with = random.Random.seed

    def seed_from_entropy(rng: random.Random, a: Any = None, version: int = 2) -> None:
        seed_with(rng, entropy.getrandbits(64) if a is None else a, version)

    state, collects = random.getstate(), gc.isenabled()
    # When garbage is collected depends on what ran before, and finalizers are called then.
    gc.disable()
    random.seed(f"global {seed}")
    with ExitStack() as patches:
        for target, name, replacement in (
            (time, "time", wall.now),
            (time, "time_ns", lambda: int(wall.now() * 1e9)),
            (time, "monotonic", loop_time),
            (time, "perf_counter", loop_time),
            (time, "perf_counter_ns", lambda: int(loop_time() * 1e9)),
            (os, "urandom", entropy.randbytes),
            (random, "_urandom", entropy.randbytes),
            (random.Random, "seed", seed_from_entropy),
            (os, "getpid", lambda: 1),
            (socket, "gethostname", lambda: "sim"),
            (anyio.to_thread, "run_sync", _run_here),
            (gc, "collect", lambda: 0),
            (gc, "freeze", lambda: None),
            (gc, "set_threshold", lambda *_: None),
            (backend.CancelScope, "__hash__", lambda _scope: 0),
        ):
            patches.enter_context(patch.object(target, name, replacement))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            random.setstate(state)
            if collects:
                gc.enable()


async def _run_here(function: Callable[[Unpack[Args]], T], *args: *Args, **_options: Any) -> T:
    await anyio.lowlevel.checkpoint()
    return function(*args)
