"""Only text is served: whatever else a client puts anywhere is a clear 400 that names it, and nothing is fetched."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
URL = "http://169.254.169.254/x.png"
TEXT = {"type": "text", "text": "What is this?"}
CHAT_PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    {"type": "audio_url", "audio_url": {"url": URL}},
    {"type": "video_url", "video_url": {"url": URL}},
    {"type": "file", "file": {"file_id": "file-1"}},
]
RESPONSE_PARTS: list[dict[str, Any]] = [
    {"type": "input_image", "image_url": URL},
    {"type": "input_file", "file_url": URL},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
]
MESSAGE_PARTS: list[dict[str, Any]] = [
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
    {"type": "document", "source": {"type": "url", "url": URL}},
]


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def bodies() -> list[tuple[str, dict[str, Any], str]]:
    """Return a path, a body and the type that it may not have, for each part in each place."""
    found: list[tuple[str, dict[str, Any], str]] = []
    for part in CHAT_PARTS:
        call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        asked = [{"role": "user", "content": "Look"}, {"role": "assistant", "tool_calls": [call]}]
        seen = {"role": "tool", "tool_call_id": "call_1", "content": [part]}
        places = (user(TEXT, part), [{"role": "system", "content": [part]}, *user(TEXT)], [*asked, seen])
        found += [("/v1/chat/completions", {"messages": messages, "stream": True}, part["type"]) for messages in places]
        found += [(path, {"messages": user(part)}, part["type"]) for path in ("/v1/explain", "/tokenize")]
    for part in RESPONSE_PARTS:
        output = {"type": "function_call_output", "call_id": "call_1", "output": [part]}
        call = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
        found.append(("/v1/responses", {"input": user(part)}, part["type"]))
        found.append(("/v1/responses", {"input": [call, output]}, part["type"]))
    for part in MESSAGE_PARTS:
        use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]}
        result = user({"type": "tool_result", "tool_use_id": "t", "content": [part]})
        system: list[dict[str, Any]] = [{"role": "system", "content": [part]}, *user(TEXT)]
        for messages in (user(TEXT, part), system, [*user(TEXT), use, *result]):
            found.append(("/v1/messages", {"max_tokens": 5, "messages": messages}, part["type"]))
            found.append(("/v1/messages/count_tokens", {"messages": messages}, part["type"]))
        found.append(("/v1/messages", {"max_tokens": 5, "system": [part], "messages": user(TEXT)}, part["type"]))
    return found


async def test_what_is_no_text_is_refused_by_name(stage: OpenStage) -> None:
    async with stage() as on:
        for path, body, kind in bodies():
            status, _, answer = await on.post(path, {"model": "tiny", **body})
            assert status == 400, (path, body, answer)
            assert f"'{kind}'" in answer["error"]["message"], (path, answer)
            assert "text" in answer["error"]["message"], (path, answer)
        question = json.dumps({"messages": user(CHAT_PARTS[0])}).encode()
        reply = await on.worker.bus.request(on.bus.subjects.ask("tiny", "acme"), question, timeout_s=30)
        assert "'image_url'" in json.loads(reply.payload)["error"]["message"]
        assert on.worker.jobs == []
