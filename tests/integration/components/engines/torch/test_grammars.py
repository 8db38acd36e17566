"""Structured output in the torch engine: what is asked comes out, moved or not, and others never notice."""

import json
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bus.config import Config, WorkerConfig
from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest, Step
from components.engines.grammar import Grammars
from components.engines.mock import load_engine as load_mock
from components.engines.torch import load_engine
from components.engines.torch.engine import TorchEngine
from components.engines.torch.load import load_core

MODEL = Path(__file__).parents[5] / "components" / "builtin" / "model"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "n"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": " ?"},
}
GRAMMAR = json.dumps({"grammars": [{"lark_grammar": f"start: %json {json.dumps(SCHEMA)}"}]})
EOS = frozenset({2})
NUM_PREEMPTED = [0]


def load() -> TorchEngine:
    return load_core(WorkerConfig(dtype="float32", kv_cache_bytes=2**21, max_running=8), MODEL, model="m")


def ask(key: int, output: list[int] | None = None, grammar: str = GRAMMAR, **sampling: Any) -> EngineRequest:
    prompt = [1, 344, 203, *range(300, 330 + key), 2, 203, 1, 350, 203]
    stopping = Stopping(max_tokens=120)
    return EngineRequest(key, prompt, output or [], Sampling(**sampling), stopping, EOS, grammar=grammar)


def run(engine: TorchEngine, *requests: EngineRequest) -> dict[int, list[int]]:
    grammars = Grammars(MODEL / "tokenizer.json", engine.spec.vocab_size)
    tokens: dict[int, list[int]] = {request.key: list(request.output) for request in requests}
    for request in requests:
        engine.add(request, grammars.open(request) if request.grammar else None)
    while engine.has_work:
        step = engine.step()
        NUM_PREEMPTED[0] += step.stats.preemptions
        for key, token in zip(step.keys, step.tokens, strict=True):
            tokens[key].append(token)
        assert not any(ended.error for ended in step.ended)
    return tokens


def text_of(tokens: list[int]) -> str:
    import llguidance

    return str(llguidance.LLTokenizer(str(MODEL / "tokenizer.json"), n_vocab=2048, eos_token=2).decode_str(tokens))


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}])
def test_answers_fit_and_go_on_elsewhere_as_they_began(sampling: dict[str, Any]) -> None:
    engine = load()
    free = run(engine, ask(9, grammar="", **sampling))[9]
    told = run(engine, ask(1, **sampling), ask(9, grammar="", **sampling), ask(2, **sampling))
    assert told[9] == free, "a sequence without a grammar does not notice those with one"
    for key in (1, 2):
        answer = json.loads(text_of(told[key]))
        assert set(answer) == {"name", "n"}
        assert len(answer["name"]) <= 6
        for cut in (1, len(told[key]) // 2, len(told[key])):
            moved = run(load(), ask(key, told[key][:cut], **sampling))
            assert moved[key] == told[key]


def test_preempted_sequences_keep_their_grammar() -> None:
    small = load_core(
        WorkerConfig(dtype="float32", block_size=4, kv_cache_bytes=2**19, max_running=8), MODEL, model="m"
    )
    keys = range(1, 7)
    before = NUM_PREEMPTED[0]
    told = run(small, *[ask(key, temperature=1.0, seed=key) for key in keys])
    assert NUM_PREEMPTED[0] > before
    for key in keys:
        assert told[key] == run(load(), ask(key, temperature=1.0, seed=key))[key]


def test_an_answer_does_not_end_before_min_tokens_unless_nothing_else_fits() -> None:
    def tokens(lark: str, *output: int, min_tokens: int) -> list[int]:
        grammar = json.dumps({"grammars": [{"lark_grammar": lark}]})
        asked = ask(1, list(output), grammar, temperature=1.0, seed=3, logit_bias={2: 100.0})
        stopping = Stopping(max_tokens=40, min_tokens=min_tokens, stop_token_ids=[2**31])
        return run(load(), msgspec.structs.replace(asked, stopping=stopping))[1]

    free = "start: /[a-z ]+/"
    assert len(tokens(free, min_tokens=0)) == 2, "it would end at once"
    told = tokens(free, min_tokens=20)
    assert (len(told), told[-1], 2 in told[:-1]) == (21, 2, False)
    assert tokens(free, *told[:7], min_tokens=20) == told
    assert text_of(tokens('start: "yes" | "no"', min_tokens=20)) in ("yes", "no")


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["torch", "mock"])
async def test_engines_refuse_what_cannot_be_and_forget_what_is_aborted(kind: str) -> None:
    config = Config(worker=WorkerConfig(kv_cache_bytes=2**21))
    engine: Any = load_engine(config, MODEL, model="m") if kind == "torch" else load_mock(config, MODEL, model="m")
    steps: list[Step] = []
    changed = anyio.Event()

    def on_step(step: Step) -> None:
        nonlocal changed
        steps.append(step)
        changed.set()
        changed = anyio.Event()

    async def ends(key: int) -> Any:
        while True:
            for step in steps:
                for ended in step.ended:
                    if ended.key == key:
                        return ended
            await changed.wait()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run, on_step)
            engine.submit(ask(1, temperature=0.0))
            engine.submit(ask(2, temperature=0.0))
            engine.abort(2)
            ended = await ends(1)
            assert (ended.reason, ended.error) == ("stop", "")
            told = [t for step in steps for k, t in zip(step.keys, step.tokens, strict=True) if k == 1]
            assert set(json.loads(text_of([t for t in told if t not in EOS]))) == {"name", "n"}
            assert not any(2 in step.keys for step in steps)
            if kind == "torch":
                engine.submit(ask(3, grammar='{"grammars": 5}'))
                ended = await ends(3)
                assert ended.reason == "abort"
                assert "grammar" in ended.error
                engine.submit(ask(4, [5, 6, 7]))
                assert "does not fit" in (await ends(4)).error
            assert engine.load().running == engine.load().waiting == 0
            tasks.cancel_scope.cancel()
