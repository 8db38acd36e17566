"""Hints come from body and headers under several names, within bounds; what is wrong is named."""

from typing import Any

import msgspec
import pytest

from bus.errors import InvalidRequest
from bus.messages.inference import Hints, Sampling, Stopping
from frontend.hints import NOTHING_GIVEN, BuswayHints, apply, merge, read_headers
from frontend.openai.body import ChatBody, chat_body
from frontend.request import Generation

GENERATION = Generation(
    model="m", model_slug="m", prompt=b"", sampling=Sampling(), stopping=Stopping(max_tokens=1), session="cache-key"
)


def decode(**fields: Any) -> ChatBody:
    return chat_body.decode(msgspec.json.encode({"messages": [{"role": "user", "content": "x"}], **fields}))[0]


def test_without_hints_nothing_is_built() -> None:
    assert merge(decode(), read_headers({b"host": b"x", b"x-busway": b"y"})) is NOTHING_GIVEN


def test_all_of_it_reaches_the_generation() -> None:
    body = decode(
        busway={
            "latency_class": "batch",
            "priority": 7,
            "expected_output_tokens": 300,
            "pin_ttl_s": 60,
            "session": "run-1",
            "timeout_s": 2.5,
            "cache_salt": "s",
        }
    )
    made = apply(GENERATION, merge(body, NOTHING_GIVEN), "", 100.0)
    assert (made.latency_class, made.session, made.cache_salt, made.deadline_at) == ("batch", "run-1", "s", 102.5)
    assert made.hints == Hints(priority=7, expected_output_tokens=300, pin_ttl_s=60.0)


def test_headers_say_the_same() -> None:
    given = read_headers(
        {
            b"x-busway-latency-class": b"interactive",
            b"x-busway-priority": b"-3",
            b"x-busway-timeout-s": b"1.5",
            b"x-dynamo-session-id": b"d",
            b"x-dynamo-request-priority": b"9",
        }
    )
    assert given == BuswayHints(latency_class="interactive", priority=-3, timeout_s=1.5, session="d")


def test_nvext_and_vllm_are_understood_and_ours_goes_first() -> None:
    nvext = {
        "agent_hints": {"priority": 1000, "osl": 50, "speculative_prefill": True},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "session_control": {"session_id": "s", "action": "open"},
        "greed_sampling": True,
    }
    assert merge(decode(nvext=nvext, priority=4, cache_salt="v"), NOTHING_GIVEN) == BuswayHints(
        priority=100, expected_output_tokens=50, pin_ttl_s=3600.0, session="s", cache_salt="v"
    )
    assert merge(decode(priority=4), NOTHING_GIVEN).priority == -4
    both = decode(busway={"priority": 1}, nvext=nvext)
    assert merge(both, BuswayHints(priority=2, session="h")) == BuswayHints(
        priority=1, expected_output_tokens=50, pin_ttl_s=3600.0, session="h"
    )


def test_hints_that_say_nothing_of_the_session_leave_it() -> None:
    assert apply(GENERATION, BuswayHints(priority=1), "", 0.0).session == "cache-key"


@pytest.mark.parametrize("salt", ["", "x", "1:a:x"])
def test_no_request_leaves_the_salt_of_its_key(salt: str) -> None:
    mine = apply(GENERATION, BuswayHints(cache_salt=salt), "a", 0.0).cache_salt
    others = {apply(GENERATION, BuswayHints(cache_salt=salt), key, 0.0).cache_salt for key in ("b", "", "a:", "1")}
    assert mine.startswith("1:a:")
    assert mine not in others - {salt}


@pytest.mark.parametrize(
    ("busway", "param"),
    [
        ({"priority": 101}, "busway.priority"),
        ({"priority": "high"}, "busway.priority"),
        ({"latency_class": "fast"}, "busway.latency_class"),
        ({"expected_output_tokens": 0}, "busway.expected_output_tokens"),
        ({"pin_ttl_s": -1}, "busway.pin_ttl_s"),
        ({"timeout_s": 0}, "busway.timeout_s"),
        ({"session": "x" * 257}, "busway.session"),
        ({"sesion": "typo"}, "busway"),
        ([], "busway"),
    ],
)
def test_a_wrong_hint_in_the_body_is_named(busway: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(busway=busway)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-busway-priority", b"1e9"),
        (b"x-busway-priority", b"\xff"),
        (b"x-busway-latency-class", b"fast"),
        (b"x-busway-timeout-s", b"nan"),
        (b"x-busway-timeout-s", b"-1"),
        (b"x-busway-session", b"x" * 257),
    ],
)
def test_a_wrong_header_is_named(name: bytes, value: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_headers({name: value})
    assert caught.value.param == name.decode()
