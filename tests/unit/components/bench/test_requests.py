"""Pure. Requests are reproducible, unique and well-formed."""

import msgspec
import pytest

from bus.errors import BadConfig
from components.bench.requests import parse_target, render_prompt, render_request
from components.bench.results import LoadOptions

OPTIONS = LoadOptions(url="http://127.0.0.1:8000", model="busway-tiny", prompt_words=16, max_tokens=5)


def test_prompts_repeat_with_the_seed_and_differ_from_the_first_word() -> None:
    prompts = [render_prompt(OPTIONS, index) for index in range(50)]
    assert prompts == [render_prompt(OPTIONS, index) for index in range(50)]
    assert len({prompt.split()[0] for prompt in prompts}) == 50
    assert {len(prompt.split()) for prompt in prompts} == {16}
    assert render_prompt(msgspec.structs.replace(OPTIONS, seed=1), 0) != prompts[0]


def test_identical_prompts_on_demand() -> None:
    same = msgspec.structs.replace(OPTIONS, has_identical_prompts=True)
    assert render_prompt(same, 0) == render_prompt(same, 7)


def test_a_chat_request_asks_for_a_stream_with_usage() -> None:
    head, _, body = render_request(OPTIONS, parse_target(OPTIONS), 3).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert msgspec.json.decode(body) == {
        "model": "busway-tiny",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "messages": [{"role": "user", "content": render_prompt(OPTIONS, 3)}],
    }


def test_a_completions_request_holds_a_prompt() -> None:
    options = msgspec.structs.replace(OPTIONS, endpoint="completions")
    body = msgspec.json.decode(render_request(options, parse_target(options), 0).partition(b"\r\n\r\n")[2])
    assert body["prompt"] == render_prompt(options, 0)
    assert "messages" not in body


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:81", ("host", 81, "/v1/chat/completions")),
        ("http://host/v1/", ("host", 80, "/v1/chat/completions")),
        ("http://[::1]:9/base/v1", ("::1", 9, "/base/v1/chat/completions")),
    ],
)
def test_urls_are_read_with_and_without_v1(url: str, expected: tuple[str, int, str]) -> None:
    target = parse_target(msgspec.structs.replace(OPTIONS, url=url))
    assert (target.host, target.port, target.path) == expected


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://", "http://host:99999", ""])
def test_urls_that_cannot_be_used_are_refused(url: str) -> None:
    with pytest.raises(BadConfig):
        parse_target(msgspec.structs.replace(OPTIONS, url=url))


def test_a_key_is_sent_if_there_is_one() -> None:
    keyed = msgspec.structs.replace(OPTIONS, api_key="sk-1")
    assert b"\r\nAuthorization: Bearer sk-1\r\n\r\n" in render_request(keyed, parse_target(keyed), 0)
