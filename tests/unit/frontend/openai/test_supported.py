"""Where only some texts may stand, a wrong one is answered with those."""

import json
from typing import Any

import pytest

from bus.errors import InvalidRequest
from frontend.anthropic.body import MessagesBody, messages_body
from frontend.openai.batches import batch_body
from frontend.openai.body import BodyDecoder, ChatBody, chat_body
from frontend.openai.supported import supported_values
from frontend.responses.body import responses_body

TURNS = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("decoder", "body", "says"),
    [
        (chat_body, TURNS | {"tool_choice": "some"}, "'tool_choice': 'some'; supported values: 'auto', 'none', 'requ"),
        (
            chat_body,
            TURNS | {"tool_choice": {"type": "x"}},
            "'tool_choice.type': 'x'; supported values: 'function'",
        ),
        (
            chat_body,
            TURNS | {"tools": [{"type": "x"}]},
            "'tools[0].type': 'x'; supported values: 'custom', 'function'",
        ),
        (chat_body, TURNS | {"service_tier": "x" * 200, "new": 1}, "'service_tier': 'xxx"),
        (batch_body, {"input_file_id": "f", "endpoint": "/v1/x", "completion_window": "24h"}, "'/v1/completions'"),
        (responses_body, {"input": "x", "truncation": "y"}, "'truncation': 'y'; supported values: 'auto', 'disabled'."),
        (
            messages_body,
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "'messages[0].content[0].type': 'image'; supported values: 'text', 'document', 'search_result', 'tool_use'",
        ),
        (messages_body, {"max_tokens": 1, "messages": [{"role": "x", "content": ""}]}, "'assistant', 'system', 'user'"),
    ],
)
def test_a_wrong_text_is_answered_with_the_right_ones(decoder: BodyDecoder[Any], body: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decoder.decode(json.dumps(body).encode())
    assert says in str(refused.value)
    assert len(str(refused.value)) < 400


def test_places_where_any_text_may_stand_or_that_do_not_exist_name_none() -> None:
    for kind, path in (
        (ChatBody, "user"),
        (ChatBody, "messages[0].role"),
        (MessagesBody, "a.b[0]"),
        (Any, ""),
        (int, "x"),
    ):
        assert supported_values(kind, path) == []
