"""Anthropic's Messages API and OpenAI's Responses API fit the types of the official clients, and add nothing."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import anyio
import msgspec
import openai
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from bus.config import FrontendConfig
from bus.keys import KeyFile, digest_of
from bus.messages.keys import ApiKey
from bus.registry import new_id
from frontend.doors.server import listen
from frontend.responses.store import MAX_INPUT_BYTES, ResponseStore
from frontend.service import Frontend

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
"""Writes thoughts and calls as the hermes family does."""
SAID = (
    '<think>The user asks for "weather".</think>Let me look. 😀'
    '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}</tool_call>'
    '<tool_call>{"name": "weather", "arguments": {"city": "Ulm", "days": 1}}</tool_call>'
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
FUNCTION = {"type": "function", "name": "weather", "description": "The weather", "parameters": SCHEMA}
TOOL = {"name": "weather", "description": "The weather", "input_schema": SCHEMA}
QUESTION = "What is the weather?"
CITIES = [{"city": "Köln", "days": 2}, {"city": "Ulm", "days": 1}]

NOT_IN_THE_CLIENT = {
    "Response": {"store"},
    "Logprob": {"bytes"},
    "LogprobTopLogprob": {"bytes"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    "ResponseCustomToolCall": {"status"},
}
"""What OpenAI sends though its client in Python has no name for it."""
NEVER_LEFT_OUT = {
    "Message": {"container", "diagnostics", "stop_details", "stop_reason", "stop_sequence"},
    "Usage": {"cache_creation", "inference_geo", "output_tokens_details", "server_tool_use", "service_tier", "speed"},
    "MessageDeltaUsage": {"cache_creation_input_tokens", "cache_read_input_tokens", "input_tokens", "server_tool_use"},
    "Delta": {"container", "stop_details", "stop_reason", "stop_sequence"},
    "TextBlock": {"citations"},
    "ToolUseBlock": {"caller", "toolset_name"},
    "ModelInfo": {"capabilities", "deprecated_at", "line", "retires_at"},
}
"""What Anthropic always sends, null where there is nothing to say."""


def check(adapter: TypeAdapter[Any], data: Any) -> Any:
    """Read data by the client's types: nothing may be missing, wrong, or unknown there."""
    value = adapter.validate_json(json.dumps(data), strict=True)
    find_unknown(value)
    return value


def check_complete(adapter: TypeAdapter[Any], data: Any) -> Any:
    """As `check`; what may be null has to be there, too, as Anthropic sends it."""
    value = check(adapter, data)
    find_left_out(value)
    return value


def find_left_out(value: Any) -> None:
    """Fail on fields that may be null and did not come."""
    if isinstance(value, BaseModel):
        assert NEVER_LEFT_OUT.get(type(value).__name__, set()) <= value.model_fields_set, type(value).__name__
        for name in type(value).model_fields:
            find_left_out(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            find_left_out(each)


def find_unknown(value: Any) -> None:
    """Fail on fields that the client does not know."""
    if isinstance(value, BaseModel):
        known = NOT_IN_THE_CLIENT.get(type(value).__name__, set())
        assert set(value.model_extra or ()) <= known, f"{type(value).__name__}: {value.model_extra}"
        for name in type(value).model_fields:
            find_unknown(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            find_unknown(each)


def read_events(body: bytes) -> list[tuple[str, Any]]:
    """Parse server-sent events: names and data."""
    *events, end = body.decode().split("\n\n")
    assert end == ""
    pairs = [event.split("\n") for event in events]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def claude_of(stage: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=stage.url, api_key="none", max_retries=0)


def openai_of(stage: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)


@asynccontextmanager
async def another_frontend(stage: Any) -> AsyncIterator[str]:
    """Run one more frontend on the same bus; it is cut off in what it does at the end."""
    async with stage.connect("another") as bus:
        frontend = Frontend(bus, new_id("f"), FrontendConfig(port=0), listen("127.0.0.1", 0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(frontend.run)
            await stage.wait_ready(url=frontend.url)
            yield frontend.url
            tasks.cancel_scope.cancel()


async def until_ended(client: openai.AsyncOpenAI, response: str) -> Response:
    """Look at a response until it has ended."""
    with anyio.fail_after(30):
        while True:
            shown = await client.responses.retrieve(response)
            if shown.status not in ("queued", "in_progress"):
                return shown
            await anyio.sleep(0.01)


async def test_every_event_of_a_message_is_as_anthropic_has_it(stage: OpenStage) -> None:
    async with stage(template=TEMPLATE) as on:
        on.worker.script = lambda job: on.worker.echo(job, SAID)
        ask = {"model": "tiny", "max_tokens": 400, "messages": [{"role": "user", "content": QUESTION}], "tools": [TOOL]}
        _, headers, body = await on.post("/v1/messages", {**ask, "stream": True})
        _, _, whole = await on.post("/v1/messages", ask)
    assert headers["request-id"]
    events = read_events(body)
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for name, data in events:
        assert name == data["type"]
        if name != "ping":
            check_complete(adapter, data)
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    starts = [data["content_block"]["type"] for name, data in events if name == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    assert [data["index"] for name, data in events if name == "content_block_stop"] == [0, 1, 2, 3]
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert check_complete(TypeAdapter(Message), whole).stop_reason == "tool_use"
    # The fake worker says that 3 tokens came from the cache.
    num_prompt = events[0][1]["message"]["usage"]["input_tokens"]
    assert events[-2][1]["usage"].items() <= whole["usage"].items()
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (num_prompt - 3, 3)


async def test_anthropic_python_streams_calls_and_gives_their_results(stage: OpenStage) -> None:
    async with stage(template=TEMPLATE) as on, claude_of(on) as client:
        on.worker.script = lambda job: on.worker.echo(job, SAID)
        turns: list[Any] = [{"role": "user", "content": QUESTION}]
        tools: Any = [TOOL]
        async with client.messages.stream(model="tiny", max_tokens=400, messages=turns, tools=tools) as stream:
            streamed = await stream.get_final_message()
        whole = await client.messages.create(model="tiny", max_tokens=400, messages=turns, tools=tools)
        on.worker.script = lambda job: on.worker.echo(job, "Rain.")
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
            for block in streamed.content
            if block.type == "tool_use"
        ]
        turns += [
            {"role": "assistant", "content": streamed.content},
            {"role": "user", "content": [*results, {"type": "text", "text": "So?"}]},
        ]
        counted = await client.messages.count_tokens(model="tiny", messages=turns, tools=tools, system="Be brief.")
        last = await client.messages.create(
            model="tiny", max_tokens=40, messages=turns, tools=tools, system="Be brief.", stop_sequences=["in."]
        )
        prompt = on.tokenizer.decode(list(memoryview(on.worker.jobs[-1].prompt).cast("I")), skip_special_tokens=False)
    kinds = ["thinking", "text", "tool_use", "tool_use"]
    for message in (streamed, whole):
        assert [block.type for block in message.content] == kinds
        assert message.content[0].thinking == 'The user asks for "weather".'
        assert message.content[1].text == "Let me look. 😀"
        assert [block.input for block in message.content[2:]] == CITIES
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is")
    assert prompt.count("<tool_call>") == 2
    assert prompt.count("<|im_start|>tool\nrain<|im_end|>") == 2
    assert prompt.endswith("<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant")
    assert (last.content[0].text, last.stop_reason, last.stop_sequence) == ("Ra", "stop_sequence", "in.")
    assert counted.input_tokens == last.usage.input_tokens + last.usage.cache_read_input_tokens


async def test_a_prompt_that_is_too_long_is_counted_and_refused(stage: OpenStage) -> None:
    async with stage() as on, claude_of(on) as claude, openai_of(on) as client:
        on.worker.script = on.worker.echo
        turns: Any = [{"role": "user", "content": "word " * 2000}]
        counted = await claude.messages.count_tokens(model="tiny", messages=turns)
        also = await client.responses.input_tokens.count(model="tiny", input=turns)
        with pytest.raises(anthropic.BadRequestError, match=f"resulted in {counted.input_tokens} tokens"):
            await claude.messages.create(model="tiny", max_tokens=5, messages=turns)
        with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as refused:
            await client.responses.create(model="tiny", input=turns)
        turns += [{"role": "assistant", "content": "So?"}, {"role": "user", "content": "Hi"}]
        short = await client.responses.create(model="tiny", input=turns, truncation="auto", max_output_tokens=5)
        roomy = await claude.messages.create(
            model="tiny", max_tokens=8_000, messages=[{"role": "user", "content": "Hi"}]
        )
    assert roomy.usage.input_tokens < 50
    assert counted.input_tokens == also.input_tokens > 2000
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
    assert short.usage is not None
    assert short.usage.input_tokens < 50


async def test_anthropic_python_finds_the_models_and_openai_python_too(stage: OpenStage) -> None:
    async with stage() as on, claude_of(on) as claude, openai_of(on) as client:
        listed = [model async for model in claude.models.list(limit=1)]
        shown = await claude.models.retrieve("tiny")
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await claude.models.retrieve("other")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")
        also = [model.id async for model in client.models.list()]
    assert listed == [shown]
    find_unknown(shown)
    find_left_out(shown)
    assert (shown.id, shown.display_name, shown.type, shown.max_input_tokens) == ("tiny", "tiny", "model", 512)
    assert shown.created_at.timestamp() == 1234
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert also == ["tiny"]


async def test_errors_are_the_exceptions_of_anthropic_python(stage: OpenStage) -> None:
    async with stage() as on, claude_of(on) as client:
        ask: Any = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(**{**ask, "model": "other"})
        block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
        with pytest.raises(anthropic.BadRequestError) as image:
            await client.messages.create(**{**ask, "messages": [{"role": "user", "content": [block]}]})
        with pytest.raises(anthropic.BadRequestError, match="web_search"):
            await client.messages.create(**ask, tools=[{"type": "web_search_20250305", "name": "web_search"}])
        wrong: Any = {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}
        with pytest.raises(anthropic.BadRequestError, match=r"'output_config\.format': failed to compile"):
            await client.messages.create(**ask, output_config=wrong)
        with pytest.raises(anthropic.BadRequestError, match="prefill"):
            await client.messages.create(**{**ask, "messages": [{"role": "assistant", "content": "I"}]})

        def fail_late(job: Any) -> None:
            on.worker.say(job, "Some text")
            on.worker.say(job, failed=("internal", False), at=len(on.tokenizer.encode("Some text").ids))

        on.worker.script = fail_late
        with pytest.raises(anthropic.APIStatusError) as broken:
            async with client.messages.stream(**ask) as stream:
                await stream.until_done()
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert unknown.value.request_id == unknown.value.body["request_id"]
    assert image.value.body["error"]["type"] == "invalid_request_error"
    assert broken.value.body["error"]["type"] == "api_error"


async def test_every_event_of_a_response_is_as_openai_has_it(stage: OpenStage) -> None:
    async with stage(template=TEMPLATE) as on:
        on.worker.script = lambda job: on.worker.echo(job, SAID)
        ask = {"model": "tiny", "input": QUESTION, "tools": [FUNCTION], "metadata": {"a": "b"}, "reasoning": None}
        _, _, body = await on.post("/v1/responses", {**ask, "stream": True})
        _, _, whole = await on.post("/v1/responses", ask)
    events = read_events(body)
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for number, (name, data) in enumerate(events):
        assert (name, number) == (data["type"], data["sequence_number"])
        check(adapter, data)
    short = [name.removeprefix("response.") for name, _ in events]
    order = [name for at, name in enumerate(short) if not at or short[at - 1] != name or not name.endswith("delta")]
    part = ["output_item.added", "content_part.added"]
    done = ["content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert order == [
        *("created", "in_progress"),
        *(*part, "reasoning_text.delta", "reasoning_text.done", *done),
        *(*part, "output_text.delta", "output_text.done", *done),
        *(*call, *call),
        "completed",
    ]
    made = events[-1][1]["response"]
    checked = check(TypeAdapter(Response), whole)
    for response in (made, whole):
        assert [item["type"] for item in response["output"]] == ["reasoning", "message", *["function_call"] * 2]
        assert [json.loads(item["arguments"]) for item in response["output"][2:]] == CITIES
    said = [data["name"] for name, data in events if name == "response.function_call_arguments.done"]
    assert said == ["weather", "weather"]
    for response in (made, whole):
        assert response["output"][1]["content"][0]["text"] == "Let me look. 😀"
        assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert checked.usage.input_tokens_details.cached_tokens == 3
    assert [data["item"] for name, data in events if name == "response.output_item.done"] == made["output"]


async def test_openai_python_continues_a_conversation_on_another_frontend(stage: OpenStage) -> None:
    async with stage(template=TEMPLATE) as on, openai_of(on) as client:
        on.worker.script = lambda job: on.worker.echo(job, SAID)
        tools: Any = [FUNCTION]
        async with client.responses.stream(
            model="tiny", input=QUESTION, instructions="Be brief.", tools=tools
        ) as stream:
            first = await stream.get_final_response()
        calls = [item for item in first.output if item.type == "function_call"]
        on.worker.script = lambda job: on.worker.echo(job, "Rain.")
        outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]
        async with another_frontend(on) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as other:
            second = await other.responses.create(
                model="tiny", input=outputs, previous_response_id=first.id, tools=tools
            )
            shown = await other.responses.retrieve(first.id)
            reference: Any = [{"type": "item_reference", "id": first.output[1].id}, {"role": "user", "content": "Why?"}]
            await other.responses.create(model="tiny", input=reference, store=False)
        prompts = [
            on.tokenizer.decode(list(memoryview(job.prompt).cast("I")), skip_special_tokens=False)
            for job in on.worker.jobs
        ]
        listed = await client.responses.input_items.list(second.id, order="asc", limit=1)
        pages = [item async for item in listed]
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError, match="cannot be continued"):
            await client.responses.create(model="tiny", input="And?", previous_response_id=second.id)
    assert [item.id for item in shown.output] == [item.id for item in first.output]
    assert shown.output_text == first.output_text == "Let me look. 😀"
    assert prompts[1] == (
        "<|im_start|>user\nWhat is the weather?<|im_end|>\n"
        '<|im_start|>assistant\n<think>The user asks for "weather".</think>Let me look. 😀'
        '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}</tool_call>'
        '<tool_call>{"name": "weather", "arguments": {"city": "Ulm", "days": 1}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant"
    )
    assert prompts[2].startswith("<|im_start|>assistant\nLet me look. 😀<|im_end|>\n<|im_start|>user\nWhy?")
    assert [item.call_id for item in pages] == [call.call_id for call in calls]


async def test_a_background_response_outlives_its_client_and_ends_with_its_frontend(stage: OpenStage) -> None:
    async with stage() as on, openai_of(on) as client:
        queued = await client.responses.create(model="tiny", input="Hi", background=True)
        job = await on.worker.wait_jobs(1)
        running = await client.responses.retrieve(queued.id)
        on.worker.echo(job, "Hello.")
        done = await until_ended(client, queued.id)
        on.worker.script = lambda job: on.worker.say(job, "Hel")
        second = await client.responses.create(model="tiny", input="Hi", background=True)
        await on.worker.wait_jobs(2)
        async with another_frontend(on) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as other:
            cancelled = await other.responses.cancel(second.id)
            left = await other.responses.create(model="tiny", input="Hi", background=True)
            await on.worker.wait_jobs(3)
        stopped = await client.responses.retrieve(left.id)
        await on.worker.wait_cancelled(on.worker.jobs[1].ticket)
        await on.worker.wait_cancelled(on.worker.jobs[2].ticket)
        with pytest.raises(openai.BadRequestError, match="is stored"):
            await client.responses.create(model="tiny", input="Hi", background=True, store=False)
    assert (queued.status, running.status, done.status) == ("queued", "in_progress", "completed")
    assert (done.output_text, cancelled.status) == ("Hello.", "cancelled")
    assert (stopped.status, stopped.error and stopped.error.code) == ("failed", "server_error")


async def test_a_background_response_is_streamed_to_who_comes_and_comes_again(stage: OpenStage) -> None:
    async with stage(write_gap_s=0.0) as on, openai_of(on) as client, another_frontend(on) as url:
        other = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        async def read(stream: Any, count: int) -> list[ResponseStreamEvent]:
            with anyio.fail_after(30):
                return [await anext(stream) for _ in range(count)]

        stream = await client.responses.create(model="tiny", input="Hi", background=True, stream=True)
        first = await read(stream, 2)  # before there is a token
        assert [each.type for each in first] == ["response.created", "response.in_progress"]
        job = await on.worker.wait_jobs(1)
        on.worker.say(job, "Let me")
        assert [each.sequence_number for each in await read(stream, 3)] == [2, 3, 4]
        await stream.close()
        again = await client.responses.retrieve(first[0].response.id, stream=True, starting_after=2)
        elsewhere = await other.responses.retrieve(first[0].response.id, stream=True)
        assert [each.sequence_number for each in await read(again, 2)] == [3, 4]
        assert [each.sequence_number for each in await read(elsewhere, 5)] == [0, 1, 2, 3, 4]
        on.worker.echo(job, "Let me look.")
        with anyio.fail_after(30):
            rests = [[each async for each in again], [each async for each in elsewhere]]
        late = await other.responses.retrieve(first[0].response.id, stream=True, starting_after=2)
        ended = [each async for each in late]
        gone = await other.responses.retrieve(
            first[0].response.id, stream=True, starting_after=ended[-1].sequence_number
        )
        last = await read(gone, 1)
        await other.close()
    assert rests[0] == rests[1] == ended[2:]
    assert [each.sequence_number for each in rests[0]] == list(range(5, 5 + len(rests[0])))
    assert rests[0][-1].type == last[0].type == "response.completed"
    assert rests[0][-1].response.output_text == last[0].response.output_text == "Let me look."
    assert [each.sequence_number for each in ended[:2]] == [3, 4]
    assert last[0].sequence_number == ended[-1].sequence_number + 1


async def test_tenants_do_not_see_the_responses_of_each_other(stage: OpenStage, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = {digest_of(b"sk-ann"): ApiKey(name="a", tenant="ann"), digest_of(b"sk-bob"): ApiKey(name="b", tenant="bob")}
    file.write_bytes(msgspec.json.encode(KeyFile(keys)))
    async with stage(keys=str(file)) as on, openai_of(on) as client:
        on.worker.script = on.worker.echo
        ann, bob = client.with_options(api_key="sk-ann"), client.with_options(api_key="sk-bob")
        made = await ann.responses.create(model="tiny", input="Hi")
        assert (await ann.responses.retrieve(made.id)).output_text == made.output_text
        theirs = bob.responses
        for look in (theirs.retrieve, theirs.delete, theirs.cancel, theirs.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await look(made.id)
        with pytest.raises(openai.NotFoundError):
            await theirs.create(model="tiny", input="And?", previous_response_id=made.id)
        ask: Any = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
        async with anthropic.AsyncAnthropic(base_url=on.url, api_key="sk-bob", max_retries=0) as claude:
            await claude.messages.create(**ask)
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await claude.with_options(api_key="sk-eve").messages.create(**ask)
    assert [job.tenant for job in on.worker.jobs] == ["ann", "bob"]
    assert refused.value.body["error"]["type"] == "authentication_error"


async def test_what_is_too_large_to_be_stored_is_said_before_it_is_made(stage: OpenStage) -> None:
    async with stage() as on, openai_of(on) as client:
        with pytest.raises(openai.BadRequestError, match="too large to be stored") as refused:
            await client.responses.create(model="tiny", input="x" * MAX_INPUT_BYTES, store=True)
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.responses.create(model="tiny", input="x" * MAX_INPUT_BYTES)
        assert on.worker.jobs == []
    assert refused.value.param == "store"


async def test_a_response_whose_maker_is_gone_has_failed(stage: OpenStage) -> None:
    async with stage() as on, openai_of(on) as client:
        orphan = f"resp_{'0' * 32}-f-gone"
        made = await client.responses.create(model="tiny", input="Hi", background=True)
        found = await ResponseStore(on.bus).find("default", made.id)
        assert found is not None
        await ResponseStore(on.bus).put(orphan, found.stored)
        failed = await client.responses.retrieve(orphan)
        with pytest.raises(openai.BadRequestError, match="is failed"):
            await client.responses.create(model="tiny", input="And?", previous_response_id=orphan)
        theirs = msgspec.structs.replace(found.stored, tenant="somebody")
        await ResponseStore(on.bus).put(hidden := f"resp_{'1' * 32}-f-gone", theirs)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(hidden)
        await client.responses.cancel(made.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "gone" in failed.error.message


async def test_log_probabilities_of_a_response(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = lambda job: on.worker.say(job, "The bus", reason="stop", logprobs=True)
        ask = {"model": "tiny", "input": "Hi", "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
        _, _, body = await on.post("/v1/responses", {**ask, "stream": True})
        _, _, whole = await on.post("/v1/responses", ask)
    events = dict(read_events(body))
    check(TypeAdapter(ResponseStreamEvent), events["response.output_text.done"])
    logprobs = events["response.completed"]["response"]["output"][0]["content"][0]["logprobs"]
    assert "".join(each["token"] for each in logprobs) == "The bus"
    assert logprobs == events["response.output_text.done"]["logprobs"]
    assert logprobs == whole["output"][0]["content"][0]["logprobs"]
    assert len(logprobs[0]["top_logprobs"]) == 2
