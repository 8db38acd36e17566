"""Bodies are decoded with types and bounds; what is wrong is named; nothing that a client sends costs much."""

import tracemalloc

import pytest

from bus.errors import BuswayError, InvalidRequest, Malformed
from frontend.openai.body import chat_body, completion_body, decode_prompts, renamed

USER = '"messages":[{"role":"user","content":"hi"}]'


def chat(extra: str = "") -> bytes:
    return ('{"model":"m",' + USER + ("," + extra if extra else "") + "}").encode()


def test_what_clients_send_is_taken() -> None:
    body, ignored = chat_body.decode(
        chat(
            '"temperature":1,"top_p":0.5,"max_tokens":5,"stop":["a","b"],"logit_bias":{"5":-100},"seed":-1,"n":null,'
            '"stream":true,"stream_options":{"include_usage":true},"user":"u","store":false,"tool_choice":"auto","x":1,"y":[]'
        )
    )
    assert body.temperature == 1.0
    assert body.logit_bias == {5: -100.0}
    assert body.stream_options is not None
    assert body.stream_options.include_usage
    assert ignored == ("x", "y"), "what is known and has no effect is not named"


def test_a_large_body_names_one_unknown_parameter_only() -> None:
    body = chat('"aa":1,"bb":"' + "x" * 300_000 + '"')
    assert chat_body.decode(body)[1] == ("aa",)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ('"max_tokens":"5"', "max_tokens"),
        ('"max_tokens":-1', "max_tokens"),
        ('"max_tokens":1.5', "max_tokens"),
        ('"max_tokens":1' + "0" * 4000, "max_tokens"),
        ('"max_tokens":1000000000000', "max_tokens"),
        ('"n":"many"', "n"),
        ('"temperature":3', "temperature"),
        ('"temperature":-0.1', "temperature"),
        ('"temperature":1e999', "temperature"),
        ('"temperature":"NaN"', "temperature"),
        ('"top_p":2', "top_p"),
        ('"top_k":-2', "top_k"),
        ('"presence_penalty":2.5', "presence_penalty"),
        ('"repetition_penalty":0', "repetition_penalty"),
        ('"logit_bias":{"5":101}', "logit_bias[...]"),
        ('"logit_bias":{"x":1}', "logit_bias"),
        ('"logit_bias":{"-1":1}', "logit_bias"),
        ('"stop":[""]', "stop[0]"),
        ('"stop":["a",1]', "stop[1]"),
        ('"stop":"' + "a" * 1025 + '"', "stop"),
        ('"stop":[' + ",".join(['"a"'] * 17) + "]", "stop"),
        ('"stop_token_ids":[4294967296]', "stop_token_ids[0]"),
        ('"seed":9223372036854775808', "seed"),
        ('"top_logprobs":21', "top_logprobs"),
        ('"stream":"yes"', "stream"),
        ('"stream_options":[]', "stream_options"),
        ('"tools":[{"type":"function"}]', "tools[0].function"),
        ('"messages":[]', "messages"),
        ('"messages":[{"content":"x"}]', "messages[0].role"),
        ('"messages":[{"role":"user","content":5}]', "messages[0].content"),
        ('"messages":[{"role":"user","content":[{"text":"x"}]}]', "messages[0].content[0].type"),
        ('"unknown":1,"max_tokens":"5"', "max_tokens"),
    ],
)
def test_wrong_types_and_values_name_their_field(extra: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_body.decode(chat(extra))
    assert caught.value.param == param
    assert param in str(caught.value)


def test_missing_messages_are_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_body.decode(b'{"model":"m"}')
    assert (caught.value.param, str(caught.value)) == ("messages", "Missing required parameter: 'messages'.")
    with pytest.raises(InvalidRequest, match=r"parameter: 'messages\[0\].role'"):
        chat_body.decode(b'{"messages":[{"content":"Hi"}]}')


@pytest.mark.parametrize(
    ("param", "theirs"),
    [
        ("stop", "stop_sequences"),
        ("stop[0]", "stop_sequences[0]"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("stop_token_ids", "stop_token_ids"),
        ("messages", "messages"),
    ],
)
def test_errors_are_told_in_the_words_of_the_api_at_hand(param: str, theirs: str) -> None:
    names = {
        "stop": "stop_sequences",
        "response_format.json_schema": "text.format",
        "response_format": "text.format",
    }
    error = renamed(InvalidRequest(f"Invalid value for '{param}': no.", param=param), names)
    assert (error.param, str(error)) == (theirs, f"Invalid value for '{theirs}': no.")


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b'{"model":',
    chat()[:-1],
    chat() + b"x",
    b"\xff\xfe{}",
    b'{"model":"\xff"}',
    chat('"a":NaN'),
    chat('"temperature":Infinity'),
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"\\ud800\\u0041"}]}',
    b'{"messages":[{"role":"user","content":"\\u"}]}',
    b'{"messages":[{"role":"user","content":"\\x"}]}',
    b'{"messages":' + b"[" * 100_000,
    chat('"a":' + "[" * 100_000 + "]" * 100_000),
    chat('"a":' + '{"a":' * 100_000 + "1" + "}" * 100_000),
    chat('"tools":' + "[" * 100_000 + "]" * 100_000),
    b"[" + b"[]," * 350_000 + b"[]]",
    b'{"messages":[' + b"[]," * 350_000 + b"[]]}",
    b'{"prompt":"a\x00b","messages":[{"role":"user","content":"a\x00b"}]}',
]


@pytest.mark.parametrize("decoder", [chat_body, completion_body])
@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bodies_are_refused_as_such(decoder: object, data: bytes) -> None:
    try:
        decoder.decode(data)  # type: ignore[attr-defined]
    except BuswayError:
        return
    # Depth inside what nobody reads harms nobody.
    assert b'"a":' in data


def test_a_megabyte_of_empty_lists_takes_no_memory() -> None:
    data = b'{"model":"m","prompt":[' + b"[]," * 350_000 + b"[]]}"
    tracemalloc.start()
    try:
        body, _ = completion_body.decode(data)
        with pytest.raises(InvalidRequest):
            decode_prompts(body.prompt)
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (b'"text"', ["text"]),
        (b"[1, 2]", [[1, 2]]),
        (b" [ 7 ]", [[7]]),
        (b'"\\u00e9"', ["é"]),
        (b'["a", "b"]', ["a", "b"]),
        (b"[ [1], [2, 3]]", [[1], [2, 3]]),
    ],
)
def test_prompts_are_texts_or_ids(prompt: bytes, expected: object) -> None:
    body, _ = completion_body.decode(b'{"model":"m","prompt":' + prompt + b"}")
    assert decode_prompts(body.prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        b"[]",
        b"5",
        b"null",
        b"{}",
        b'["a",1]',
        b"[[1],[]]",
        b'[[1],"a"]',
        b"[-1]",
        b"[1.5]",
        b"[1,[2]]",
        b"[4294967296]",
    ],
)
def test_other_prompts_are_refused_by_name(prompt: bytes) -> None:
    body, _ = completion_body.decode(b'{"model":"m","prompt":' + prompt + b"}")
    with pytest.raises((InvalidRequest, Malformed)) as caught:
        decode_prompts(body.prompt)
    assert isinstance(caught.value, InvalidRequest)
    assert str(caught.value.param).startswith("prompt")
