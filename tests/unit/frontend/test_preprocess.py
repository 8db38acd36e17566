"""Bodies become generations within the model's bounds."""

import json
from typing import Any

import msgspec
import pytest

from bus.errors import BuswayError, InvalidRequest, Malformed, PromptTooLong
from bus.messages.base import unpack_u32
from bus.messages.fleet import ModelCard
from bus.messages.inference import Sampling
from frontend.model import ServedModel, build_model
from frontend.openai.body import chat_body, completion_body
from frontend.preprocess import Defaults, prepare_chat, prepare_completion
from frontend.request import Generation

DEFAULTS = Defaults(max_tokens=50, seed=42, tenant="t")


def chat(model: ServedModel, **fields: Any) -> Generation:
    fields.setdefault("messages", [{"role": "user", "content": "hi"}])
    return prepare_chat(chat_body.decode(json.dumps(fields).encode())[0], model, DEFAULTS).generation


def complete(model: ServedModel, defaults: Defaults = DEFAULTS, **fields: Any) -> Generation:
    return prepare_completion(completion_body.decode(json.dumps(fields).encode())[0], model, defaults)[0]


def text_of(model: ServedModel, generation: Generation) -> str:
    return b"".join(model.vocabulary.raw[token] for token in unpack_u32(generation.prompt)).decode()


def test_a_conversation_is_rendered_and_tokenized(model: ServedModel) -> None:
    generation = chat(model)
    assert text_of(model, generation) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert unpack_u32(generation.prompt)[0] == 1
    assert generation.stopping.max_tokens == 50
    assert generation.sampling.seed == 42
    assert generation.tenant == "t"
    assert generation.model_slug.startswith("tiny-model-1-0-")


def test_roles_parts_tools_and_earlier_calls_reach_the_template(model: ServedModel) -> None:
    generation = chat(
        model,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
    )
    text = text_of(model, generation)
    assert text.startswith("<|im_start|>system\na\nb<|im_end|>")
    assert '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]' in text
    assert "tools" not in text_of(model, chat(model, tools=[], tool_choice="none"))
    both = [{"function": {"name": "f"}}, {"function": {"name": "other"}}]
    one = {"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "function", "function": {"name": "f"}}]}}
    assert text_of(model, chat(model, tools=both, tool_choice=one)) == text_of(model, chat(model, tools=both[:1]))
    without = chat(model, tools=[{"function": {"name": "f"}}], tool_choice="none")
    assert '"name"' not in text_of(model, without)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Sampling(seed=42)),
        ({"do_sample": False, "temperature": 0.6}, Sampling(temperature=0.0, seed=42)),
        (
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": [1, 2]},
            Sampling(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1, seed=42),
        ),
    ],
)
def test_the_model_says_how_it_is_sampled_by_default(
    card: ModelCard, files: dict[str, bytes], config: dict[str, Any], expected: Sampling
) -> None:
    model = build_model(card, files | {"generation_config.json": json.dumps(config).encode()})
    assert chat(model).sampling == expected
    given = chat(model, temperature=1.0, top_p=0.5, top_k=-1, min_p=0.1, repetition_penalty=1.0).sampling
    assert given == Sampling(temperature=1.0, top_p=0.5, min_p=0.1, seed=42)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"temperature": -1}', b'{"top_p": "x"}', b"\xff", b"[" * 100_000])
def test_a_broken_generation_config_is_refused_by_name(card: ModelCard, files: dict[str, bytes], data: bytes) -> None:
    with pytest.raises(Malformed, match="generation_config"):
        build_model(card, files | {"generation_config.json": data})


def test_sampling_fields_arrive(model: ServedModel) -> None:
    generation = chat(
        model,
        temperature=0,
        top_k=-1,
        seed=-1,
        stop="x",
        stop_token_ids=[3],
        min_tokens=2,
        max_completion_tokens=7,
        max_tokens=9,
        logprobs=True,
        top_logprobs=3,
    )
    assert (generation.sampling.temperature, generation.sampling.top_k) == (0.0, 0)
    assert generation.sampling.seed == 2**63 - 1
    assert generation.sampling.top_logprobs == 3
    assert generation.stop_strings == ("x",)
    assert (generation.stopping.max_tokens, generation.stopping.min_tokens) == (7, 2)
    assert generation.needs_pieces
    assert not chat(model).needs_pieces


def test_token_ids_are_taken_as_they_are(model: ServedModel) -> None:
    assert unpack_u32(complete(model, prompt=[5, 6, 7]).prompt).tolist() == [5, 6, 7]


def test_max_tokens_is_what_the_context_leaves(model: ServedModel) -> None:
    assert complete(model, prompt=[5] * 250).stopping.max_tokens == 6
    assert complete(model, prompt=[5] * 250, max_tokens=6).stopping.max_tokens == 6


def test_without_any_bound_the_output_has_what_the_context_leaves(model: ServedModel) -> None:
    defaults = msgspec.structs.replace(DEFAULTS, max_tokens=0)
    assert complete(model, defaults, prompt=[5] * 100).stopping.max_tokens == 156


@pytest.mark.parametrize(("length", "wanted"), [(256, None), (300, 1), (250, 7), (10, 10**9)])
def test_too_long_is_said_in_openais_words(model: ServedModel, length: int, wanted: int | None) -> None:
    with pytest.raises(PromptTooLong, match=r"This model's maximum context length is 256 tokens. However, you"):
        complete(model, prompt=[5] * length, max_tokens=wanted)


@pytest.mark.parametrize(("length", "wanted", "left"), [(250, 32_000, 6), (250, 3, 3), (250, None, 6)])
def test_a_bound_can_be_lowered_to_what_the_context_leaves(
    model: ServedModel, length: int, wanted: int | None, left: int
) -> None:
    defaults = msgspec.structs.replace(DEFAULTS, lowers_bound=True)
    assert complete(model, defaults, prompt=[5] * length, max_tokens=wanted).stopping.max_tokens == left
    with pytest.raises(PromptTooLong):
        complete(model, defaults, prompt=[5] * 256, max_tokens=wanted)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"min_tokens": 60}, "min_tokens"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"tools": [{"function": {"name": "f", "parameters": {"a": "x" * 300_000}}}]}, "tools"),
    ],
)
def test_what_cannot_be_served_is_named(model: ServedModel, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(model, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [100_000]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 0, "echo": True, "stream": True}, "max_tokens"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
    ],
)
def test_what_completions_cannot_do_is_named(model: ServedModel, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(model, **fields)
    assert caught.value.param == param


def test_a_model_without_template_says_so(model: ServedModel) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        chat(msgspec.structs.replace(model, template=None))


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"'
        + b"[" * 5000
        + b'"}}]}]}',
        b'{"messages":[{"role":"user"}],"tools":[{"function":{"name":"f","parameters":'
        + b"[" * 900
        + b"]" * 900
        + b"}}]}",
        b'{"messages":[{"role":"user"}],"tools":[{"function":{"name":"f","parameters":'
        + b'{"a":' * 400
        + b"1"
        + b"}" * 400
        + b"}}]}",
        b'{"messages":[{"role":"\\u0000","content":"\\u0000\\ufffe"}]}',
    ],
)
def test_hostile_conversations_end_in_a_prompt_or_an_error_of_ours(model: ServedModel, body: bytes) -> None:
    try:
        prepare_chat(chat_body.decode(body)[0], model, DEFAULTS)
    except BuswayError:
        pass
