"""Parameters of chat completions that few send: `functions`, as before there were tools, and tiers of service."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from pydantic import TypeAdapter

from tests.integration.frontend.test_dialects import FUNCTION, TEMPLATE, check, openai_of

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
CITY = {"city": "Köln"}


async def test_a_function_goes_around_with_openai_python(stage: OpenStage) -> None:
    functions: Any = [{key: value for key, value in FUNCTION.items() if key != "type"}]
    turns: list[Any] = [{"role": "user", "content": "What is the weather?"}]
    ask: dict[str, Any] = {"model": "tiny", "messages": turns, "functions": functions}
    async with stage(template=TEMPLATE) as on, openai_of(on) as client:
        on.worker.script = lambda job: on.worker.echo(job, CALL + CALL)
        _, headers, body = await on.post("/v1/chat/completions", ask)
        whole = check(TypeAdapter(ChatCompletion), body).choices[0]
        name, arguments, reasons = "", "", []
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            choice = chunk.choices[0]
            assert choice.delta.tool_calls is None
            reasons += [choice.finish_reason] * bool(choice.finish_reason)
            if choice.delta.function_call is not None:
                name += choice.delta.function_call.name or ""
                arguments += choice.delta.function_call.arguments or ""
        named = await client.chat.completions.create(**ask, function_call={"name": "weather"})
        turns += [
            {"role": "assistant", "content": None, "function_call": body["choices"][0]["message"]["function_call"]},
            {"role": "function", "name": "weather", "content": "rain"},
        ]
        on.worker.script = lambda job: on.worker.echo(job, "Rain.")
        last = await client.chat.completions.create(**ask)
        none = await client.chat.completions.create(**ask, function_call="none")
        prompt = on.tokenizer.decode(list(memoryview(on.worker.jobs[-2].prompt).cast("I")), skip_special_tokens=False)
        jobs = on.worker.jobs
    assert "x-busway-ignored-params" not in headers
    assert (whole.finish_reason, whole.message.content, whole.message.tool_calls) == ("function_call", None, None)
    assert (whole.message.function_call.name, json.loads(whole.message.function_call.arguments)) == ("weather", CITY)
    assert (name, json.loads(arguments), reasons) == ("weather", CITY, ["function_call"])
    assert named.choices[0].finish_reason == "stop"
    assert named.choices[0].message.function_call is not None
    assert [bool(job.grammar) for job in jobs] == [False, False, True, False, False]
    assert '<tool_call>{"name":"weather","arguments":{"city":"Köln"}}' in prompt.replace('": ', '":').replace(", ", ",")
    assert prompt.endswith("<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant")
    assert last.choices[0].message.content == none.choices[0].message.content == "Rain."


@pytest.mark.parametrize(
    ("asked", "told", "latency_class"),
    [
        (None, None, "standard"),
        ("auto", "default", "standard"),
        ("flex", "flex", "batch"),
        ("priority", "priority", "interactive"),
        ("fast", "priority", "interactive"),
    ],
)
async def test_the_tier_of_service_is_told_to_who_asks_for_one(
    stage: OpenStage, asked: Any, told: str | None, latency_class: str
) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "service_tier": asked}
    async with stage(latency_class=latency_class) as on, openai_of(on) as client:
        on.worker.script = on.worker.echo
        whole = await client.chat.completions.create(**ask)
        chunks = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
        response = await client.responses.create(model="tiny", input="Hi", service_tier=asked)
        classes = {job.latency_class for job in on.worker.jobs}
    assert {each.service_tier for each in (whole, *chunks)} == {told}
    assert response.service_tier == (told or "default")
    assert classes == {latency_class}
