"""What the frontend says about a request that does not run."""

import msgspec
import pytest

from bus.messages.base import pack_u32
from bus.messages.inference import Sampling, Stopping
from frontend.explanation import make_explanation, question_for, read_pick, unrouted
from frontend.model import ServedModel
from frontend.request import Generation
from kv_events.hashing import block_hashes, salt_hash


def made(model: ServedModel, text: str) -> Generation:
    prompt = model.tokenizer.encode(text, add_special_tokens=False)
    return Generation(
        model=model.name,
        model_slug=model.slug,
        prompt=prompt,
        sampling=Sampling(),
        stopping=Stopping(max_tokens=5),
        cache_salt="s",
    )


def test_it_shows_prompt_tokens_and_blocks(model: ServedModel) -> None:
    text = "<|im_start|>user\n😀 a bus stops<|im_end|>\n"
    explanation = make_explanation(made(model, text), model, [4, 16], unrouted("no router is running"))
    assert explanation.prompt == text
    ids = [token.id for token in explanation.tokens]
    assert explanation.num_tokens == len(ids)
    for blocks in explanation.blocks:
        expected = block_hashes(ids, blocks.block_size, salt_hash(model.name, "s"))
        assert blocks.hashes == [f"{block:016x}" for block in expected]
    assert [blocks.block_size for blocks in explanation.blocks] == [4, 16]
    assert explanation.destination.via == "any"
    assert msgspec.json.decode(msgspec.json.encode(explanation))["destination"]["candidates"] == []


def test_ids_that_nobody_knows_do_no_harm(model: ServedModel) -> None:
    generation = msgspec.structs.replace(made(model, "x"), prompt=pack_u32([2**32 - 1]))
    assert make_explanation(generation, model, [], unrouted("x")).tokens[0].text == ""


def test_a_router_is_asked_and_read(model: ServedModel) -> None:
    generation = made(model, "a bus")
    assert question_for(generation)["cache_salt"] == "s"
    answer = {
        "worker": "w-1",
        "cached_tokens": 3,
        "uncached_tokens": 2,
        "cost_s": 0.5,
        "candidates": [{"worker": "w-1"}],
    }
    destination = read_pick(msgspec.json.encode(answer))
    assert (destination.via, destination.worker) == ("router", "w-1")
    assert "500.0 ms" in destination.reason
    assert "holds 3" in destination.reason
    with pytest.raises(msgspec.MsgspecError):
        read_pick(b'{"error": {}}')
