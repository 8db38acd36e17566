import json

import msgspec
import pytest

from bus.errors import BadConfig
from components.engines.torch.architecture import parse_architecture

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": 7,
    "torch_dtype": "bfloat16",
    "rope_theta": 1e6,
}


def parse(**changes: object) -> object:
    return parse_architecture(json.dumps({**QWEN3, **changes}).encode(), "config.json")


def test_older_and_newer_spellings_are_read() -> None:
    old = parse_architecture(json.dumps(QWEN3).encode(), "config.json")
    assert (old.head_dim, old.dtype, old.rope.rope_theta, old.eos_token_ids) == (32, "bfloat16", 1e6, {7})
    new = parse_architecture(
        json.dumps(
            {
                **QWEN3,
                "rope_theta": None,
                "torch_dtype": None,
                "dtype": "bfloat16",
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "eos_token_id": [7],
            }
        ).encode(),
        "config.json",
    )
    assert new == old


def test_yarn_stretches_the_context() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert parse_architecture(json.dumps({**QWEN3, "rope_scaling": scaling}).encode(), "").max_model_len == 2048


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "'MixtralForCausalLM' is not supported; supported: LlamaForCausalLM",
        ),
        ({"architectures": []}, "architecture 'missing' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config 'awq' is not supported"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "without a factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, "rope settings"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"num_key_value_heads": 3}, "do not share"),
        ({"head_dim": 31}, "even"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(**changes)
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 5000, msgspec.json.encode({"architectures": 1})]
)
def test_hostile_text_is_bad_configuration(text: bytes) -> None:
    with pytest.raises(BadConfig):
        parse_architecture(text, "config.json")
