"""Custom tools over the official client: a model calls them with a text, and gets to see what they gave back."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item import ResponseItem
from pydantic import TypeAdapter

from tests.integration.frontend.test_dialects import TEMPLATE, check, openai_of, read_events

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]

PATCH = '*** Begin Patch\n+x = "\\n" 😀\n*** End Patch'
SAID = f"Let me.<tool_call>{json.dumps({'name': 'patch', 'arguments': {'input': PATCH}})}</tool_call>"
LARK = {"syntax": "lark", "definition": 'start: "*** Begin Patch" /(?s:.*)/'}
QUESTION = "Change it."


def prompt_of(on: Any, number: int) -> str:
    """Return the prompt of a job as text."""
    ids = list(memoryview(on.worker.jobs[number].prompt).cast("I"))
    return str(on.tokenizer.decode(ids, skip_special_tokens=False))


async def test_a_custom_tool_goes_around_with_openai_python(stage: OpenStage) -> None:
    tools: Any = [
        {"type": "custom", "custom": {"name": "patch", "description": "Changes files."}},
        {"type": "function", "function": {"name": "look"}},
    ]
    turns: list[Any] = [{"role": "user", "content": QUESTION}]
    ask: dict[str, Any] = {"model": "tiny", "messages": turns, "tools": tools}
    async with stage(template=TEMPLATE) as on, openai_of(on) as client:
        on.worker.script = lambda job: on.worker.echo(job, SAID)
        _, _, body = await on.post("/v1/chat/completions", ask)
        whole = check(TypeAdapter(ChatCompletion), body).choices[0]
        streamed: dict[int, list[str]] = {}
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or ():
                assert piece.function is None
                custom = piece.custom  # type: ignore[attr-defined]
                told = streamed.setdefault(piece.index, [piece.id or "", str(piece.type), custom.get("name", ""), ""])
                told[3] += custom["input"]
        on.worker.script = lambda job: on.worker.echo(job, "Done.")
        turns.append({"role": "assistant", **whole.message.model_dump(include={"content", "tool_calls"})})
        turns.append({"role": "tool", "tool_call_id": whole.message.tool_calls[0].id, "content": "changed"})
        await client.chat.completions.create(**ask, tool_choice={"type": "custom", "custom": {"name": "patch"}})
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**{**ask, "tools": [{"type": "custom"}]})
        prompt = prompt_of(on, -1)
    call = whole.message.tool_calls[0]
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", "Let me.")
    assert (call.type, call.custom.name, call.custom.input) == ("custom", "patch", PATCH)
    assert [told[1:] for told in streamed.values()] == [["custom", "patch", PATCH]]
    assert "<tool_call>" in prompt
    assert f'"input": {json.dumps(PATCH, ensure_ascii=False)}' in prompt.replace('\\"input\\"', '"input"')
    assert prompt.endswith("<|im_start|>tool\nchanged<|im_end|>\n<|im_start|>assistant")
    assert refused.value.param == "tools[0].custom"


async def test_a_custom_tool_goes_around_over_the_responses_api(stage: OpenStage) -> None:
    tools: Any = [{"type": "custom", "name": "patch", "format": {"type": "grammar", **LARK}}]
    ask: dict[str, Any] = {"model": "tiny", "input": QUESTION, "tools": [*tools, {"type": "function", "name": "look"}]}
    async with stage(template=TEMPLATE) as on, openai_of(on) as client:
        on.worker.script = lambda job: on.worker.echo(job, SAID)
        _, _, body = await on.post("/v1/responses", {**ask, "stream": True})
        _, _, whole = await on.post("/v1/responses", ask)
        on.worker.script = lambda job: on.worker.echo(job, "Done.")
        first = check(TypeAdapter(Response), whole)
        output: Any = [{"type": "custom_tool_call_output", "call_id": first.output[-1].call_id, "output": "changed"}]
        second = await client.responses.create(**{**ask, "input": output}, previous_response_id=first.id)
        _, _, listed = await on.get(f"/v1/responses/{second.id}/input_items")
        prompt = prompt_of(on, -1)
    for item in listed["data"]:
        check(TypeAdapter(ResponseItem), item)
    events = read_events(body)
    for _, data in events:
        check(TypeAdapter(ResponseStreamEvent), data)
    kind = "response.custom_tool_call_input"
    deltas = [data["delta"] for name, data in events if name == f"{kind}.delta"]
    assert "".join(deltas) == PATCH
    assert [data["input"] for name, data in events if name == f"{kind}.done"] == [PATCH]
    for response in (whole, events[-1][1]["response"]):
        item = response["output"][-1]
        assert [item[key] for key in ("type", "status", "name", "input")] == [
            "custom_tool_call", "completed", "patch", PATCH,
        ]  # fmt: skip
        assert response["tools"] == [*tools, {"type": "function", "name": "look", "parameters": None, "strict": None}]
    assert prompt.endswith("<|im_start|>tool\nchanged<|im_end|>\n<|im_start|>assistant")
    assert second.output_text == "Done."


async def test_only_what_a_grammar_rules_asks_the_engine_for_one(stage: OpenStage) -> None:
    def tools(**format: Any) -> list[Any]:
        return [{"type": "custom", "custom": {"name": "patch", "format": format or {"type": "text"}}}]

    turns: Any = [{"role": "user", "content": QUESTION}]
    async with stage(template=TEMPLATE) as on, openai_of(on) as client:
        on.worker.script = on.worker.echo
        create = client.chat.completions.create
        await create(model="tiny", messages=turns, tools=tools())
        await create(model="tiny", messages=turns, tools=tools(type="grammar", grammar=LARK))
        await create(model="tiny", messages=turns, tools=tools(type="grammar", grammar=LARK), tool_choice="none")
        grammars = [job.grammar for job in on.worker.jobs]
        wrong = {"syntax": "lark", "definition": "start: nothing"}
        with pytest.raises(openai.BadRequestError, match="nothing"):
            await create(model="tiny", messages=turns, tools=tools(type="grammar", grammar=wrong))
    assert [bool(grammar) for grammar in grammars] == [False, True, False]
    assert "Begin Patch" in grammars[1]
