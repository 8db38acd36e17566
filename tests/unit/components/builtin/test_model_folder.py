"""The folder that is shipped: what an engine and a frontend read from it."""

import json
from collections.abc import Callable

import minijinja
import pytest

from components.builtin import MODEL_DIR

Render = Callable[..., str]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def read(name: str) -> dict[str, object]:
    content = json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def with_minijinja(**context: object) -> str:
    environment = minijinja.Environment(templates={"chat": str(read("tokenizer_config.json")["chat_template"])})
    environment.add_filter("tojson", lambda value: json.dumps(value, ensure_ascii=False))
    return str(environment.render_template("chat", **context))


def with_jinja2(**context: object) -> str:
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return str(environment.from_string(str(read("tokenizer_config.json")["chat_template"])).render(**context))


BOTH = pytest.mark.parametrize("render", [with_minijinja, with_jinja2])


@BOTH
def test_a_chat_is_rendered_as_chatml(render: Render) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    assert render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@BOTH
def test_tools_join_the_system_prompt(render: Render) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = render(messages=messages, tools=[TOOL])
    assert text.startswith(
        "<|im_start|>system\nBe brief.\n\nYou may call these functions:\n<tools>\n" + json.dumps(TOOL)
    )
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("</tool_call><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


@BOTH
@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
def test_calls_and_responses_are_rendered_back(render: Render, arguments: object) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "sunny"},
    ]
    once = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert render(messages=messages) == (
        "<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        f"<|im_start|>assistant\n{once}\n{once}<|im_end|>\n"
        "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    )


def test_the_files_agree_on_shape_and_end_tokens() -> None:
    tokens = read("tokenizer.json")
    added = {token["content"]: token for token in tokens["added_tokens"]}  # type: ignore[attr-defined]
    config, generation = read("config.json"), read("generation_config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["vocab_size"] == len(tokens["model"]["vocab"])  # type: ignore[index]
    assert config["eos_token_id"] == added["<|im_end|>"]["id"]
    assert generation["eos_token_id"] == [added["<|im_end|>"]["id"], added["<|endoftext|>"]["id"]]
    assert added["<|im_end|>"]["special"]
    assert not added["<tool_call>"]["special"]


def test_the_weights_fit_the_shape_and_stay_small() -> None:
    path, config = MODEL_DIR / "model.safetensors", read("config.json")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"} == {"BF16"}
    assert len(content) < 6_500_000
