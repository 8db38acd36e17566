"""Plain NATS clients may ask in text or JSON."""

import json

import pytest

from bus.errors import BuswayError, InvalidRequest, Malformed
from frontend.doors.ask_body import decode_ask
from frontend.openai.body import ChatBody, CompletionBody, decode_prompts


def test_text_is_one_users_turn() -> None:
    body = decode_ask(b" What is Busway?\n", can_chat=True).body
    assert isinstance(body, ChatBody)
    assert [(message.role, message.content) for message in body.messages] == [("user", "What is Busway?")]


def test_text_is_completed_by_a_model_without_template() -> None:
    body = decode_ask("naïve".encode(), can_chat=False).body
    assert isinstance(body, CompletionBody)
    assert decode_prompts(body.prompt) == ["naïve"]


def test_a_prompt_in_json_keeps_what_else_is_said() -> None:
    data = json.dumps({"prompt": "Hi", "max_tokens": 5, "stream": True, "stop": ["x"], "reply_to": "me.there"}).encode()
    ask = decode_ask(data, can_chat=True)
    assert isinstance(ask.body, ChatBody)
    assert ask.body.messages[0].content == "Hi"
    assert (ask.body.max_tokens, ask.body.stream, ask.body.stop) == (5, True, ["x"])
    assert ask.reply_to == "me.there"


def test_token_ids_are_completed_and_messages_are_a_chat() -> None:
    assert isinstance(decode_ask(b'{"prompt":[1,2]}', can_chat=True).body, CompletionBody)
    chat = decode_ask(b'{"messages":[{"role":"user","content":"a"}],"prompt":5}', can_chat=True).body
    assert isinstance(chat, ChatBody)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"  ",
        b"\xff\xfe",
        b"{",
        b"{}",
        b'{"prompt":null}',
        b'{"prompt":{}}',
        b'{"prompt":"\\ud800"}',
        b'{"messages":[]}',
        b'{"prompt":"x","max_tokens":"5"}',
        b'{"prompt":"x","reply_to":5}',
        b'{"prompt":' + b"[" * 100_000,
        b'{"messages":' + b'{"a":' * 100_000,
    ],
)
def test_hostile_questions_are_refused(data: bytes) -> None:
    with pytest.raises((InvalidRequest, Malformed)) as caught:
        decode_ask(data, can_chat=True)
    assert isinstance(caught.value, BuswayError)
