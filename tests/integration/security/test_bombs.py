"""Grammars that are bombs, in the engine: they end with an error or within bounds, and others are served."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.config import Config, WorkerConfig
from bus.messages.inference import Sampling, Stopping
from components.engines import Ended, EngineRequest, Step
from components.engines.torch import load_engine

pytestmark = pytest.mark.anyio

MODEL = Path(__file__).parents[3] / "components" / "builtin" / "model"
BOMBS = (
    "start: /(a|aa|aaa){1,100000}/",
    "start: /" + "(" * 200 + "a" + ")*" * 200 + "/",
    'start: "a" start' + " start" * 500,
    "start: " + " ".join(f"x{n}?" for n in range(500)) + "\n" + "\n".join(f'x{n}: "a"*' for n in range(500)),
    "start: /((a{0,100}){0,100}){0,100}/",
)


def ask(key: int, lark: str = "") -> EngineRequest:
    prompt = [1, 344, 203, *range(300, 320), 2, 203, 1, 350, 203]
    grammar = json.dumps({"grammars": [{"lark_grammar": lark}]}) if lark else ""
    stopping = Stopping(max_tokens=16)
    return EngineRequest(key, prompt, [], Sampling(temperature=0.0), stopping, frozenset({2}), grammar=grammar)


async def test_bombs_hold_no_engine_up() -> None:
    """Attack 13, where it would hurt: a plain request beside all of them is answered as without them."""
    engine: Any = load_engine(Config(worker=WorkerConfig(kv_cache_bytes=2**21)), MODEL, model="m")
    told: dict[int, list[int]] = {}
    ended: dict[int, Ended] = {}
    changed = anyio.Event()

    def on_step(step: Step) -> None:
        nonlocal changed
        for key, token in zip(step.keys, step.tokens, strict=True):
            told.setdefault(key, []).append(token)
        ended.update({end.key: end for end in step.ended})
        changed.set()
        changed = anyio.Event()

    async def ends(*keys: int) -> None:
        while not set(keys) <= set(ended):
            await changed.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run, on_step)
        engine.submit(ask(0))
        with anyio.fail_after(30):
            await ends(0)
        for key, lark in enumerate(BOMBS, 1):
            engine.submit(ask(key, lark))
        engine.submit(ask(100))
        with anyio.fail_after(30):
            await ends(100)
        with anyio.fail_after(30):
            await ends(*range(1, len(BOMBS) + 1))
        tasks.cancel_scope.cancel()
    assert told[100] == told[0]
    assert any(end.error for end in ended.values()), "some of them are refused"
    assert engine.load().running == engine.load().waiting == 0
