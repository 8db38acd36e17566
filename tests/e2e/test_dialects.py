"""Anthropic's and OpenAI's newer clients against `busway up` with the built-in model: forced calls, and a death."""

import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import InputTokenCountResponse, Response, ResponseStreamEvent
from pydantic import TypeAdapter

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


class Up:
    """A running system with two frontends."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self._shell.directory / ".busway" / "up.json").read_text())
        return state

    def pid(self, name: str) -> int:
        return next(process["pid"] for process in self.read()["processes"] if process["name"] == name)

    def url(self) -> str:
        """Return where the frontends listen: they share one port."""
        return str(self.read()["url"])

    def maker(self, response: str) -> int:
        """Return the pid of the frontend that makes a response, by what its log says it is called."""
        logs = self._shell.directory / ".busway" / "logs"
        name = response.partition("-")[2]
        return next(self.pid(log.stem) for log in logs.glob("frontend-*.log") if name in log.read_text())


@pytest.fixture(scope="module")
def up(shared_shell: Any, wait_for: Callable[..., float]) -> Up:
    """Start everything, with the built-in model."""
    command = shared_shell.start("up", "--port", "0", "--set", "up.nats_port=0", "--frontends", "2")
    wait_for(lambda: "ready in" in shared_shell.output() or command.poll() is not None, explain=shared_shell.output)
    assert command.poll() is None, shared_shell.output()
    return Up(shared_shell)


def test_several_calls_at_once_go_around_with_openai_python(up: Up) -> None:
    zone = {"type": "object", "properties": {"zone": {"enum": ["CET", "UTC"]}}, "required": ["zone"]}
    turns: list[Any] = [{"role": "user", "content": "What is the weather, and what is the time?"}]
    ask: dict[str, Any] = {
        "model": "busway-tiny",
        "messages": turns,
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
            {"type": "function", "function": {"name": "time", "parameters": zone}},
        ],
        "tool_choice": "required",
        "temperature": 0,
        "max_tokens": 120,
        "logit_bias": {"0": -100, "2": -100},  # what it ends with: left to itself, the toy calls once
    }
    with openai.OpenAI(base_url=f"{up.url()}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**ask).choices[0]
        streamed: dict[int, list[str]] = {}
        for chunk in client.chat.completions.create(**ask, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or ():
                told = streamed.setdefault(piece.index, [piece.id, piece.function.name, ""])
                told[2] += piece.function.arguments
        once = client.chat.completions.create(**ask, parallel_tool_calls=False).choices[0]
        calls = whole.message.tool_calls or []
        turns.append({"role": "assistant", "tool_calls": [call.model_dump() for call in calls]})
        turns += [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in calls]
        last = client.chat.completions.create(model="busway-tiny", messages=turns, max_tokens=8)
    assert (whole.finish_reason, once.finish_reason) == ("length", "tool_calls")
    assert len(calls) > 2 > len(once.message.tool_calls or []) == 1
    assert len({call.id for call in calls}) == len(calls) == len({told[0] for told in streamed.values()})
    assert [(told[1], told[2]) for told in streamed.values()] == [
        (call.function.name, call.function.arguments) for call in calls
    ]
    keys = {"weather": {"city", "days"}, "time": {"zone"}}
    assert all(set(json.loads(call.function.arguments)) == keys[call.function.name] for call in calls)
    assert last.choices[0].message.content


def test_a_forced_call_goes_around_with_anthropic_python(up: Up) -> None:
    tools: Any = [{"name": "weather", "description": "The weather", "input_schema": SCHEMA}]
    turns: list[Any] = [{"role": "user", "content": "What is the weather?"}]
    with anthropic.Anthropic(base_url=up.url(), api_key="none", max_retries=0) as client:
        choice: Any = {"type": "tool", "name": "weather"}
        with client.messages.stream(
            model="busway-tiny", max_tokens=200, messages=turns, tools=tools, tool_choice=choice
        ) as stream:
            message = stream.get_final_message()
        call = message.content[-1]
        assert (message.stop_reason, call.type) == ("tool_use", "tool_use")
        assert isinstance(call.input, dict)
        assert set(call.input) == {"city", "days"}
        turns += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}]},
        ]
        last = client.messages.create(model="busway-tiny", max_tokens=8, messages=turns, tools=tools)
        counted = client.messages.count_tokens(model="busway-tiny", messages=turns, tools=tools)
    used = last.usage
    assert last.content[0].type == "text"
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def test_a_forced_call_goes_around_with_openai_python(up: Up) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]
    with openai.OpenAI(base_url=f"{up.url()}/v1", api_key="none", max_retries=0) as client:
        with client.responses.stream(
            model="busway-tiny", input="Weather?", tools=tools, tool_choice="required", max_output_tokens=200
        ) as stream:
            first = stream.get_final_response()
        call = first.output[-1]
        assert call.type == "function_call"
        assert set(json.loads(call.arguments)) == {"city", "days"}
        output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
        last = client.responses.create(
            model="busway-tiny", input=output, previous_response_id=first.id, tools=tools, max_output_tokens=8
        )
    assert last.output_text


SUM = 'start: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[0-9]{1,3}/\n'


@pytest.mark.parametrize("grammar", [("lark", SUM), ("regex", r"[0-9]{1,3}(\+[0-9]{1,3}){1,3}")], ids=["lark", "regex"])
def test_what_a_custom_tool_is_called_with_follows_its_grammar(up: Up, grammar: tuple[str, str]) -> None:
    format: Any = dict(zip(("syntax", "definition"), grammar, strict=True))
    spec = {"name": "calc", "description": "Adds numbers.", "format": {"type": "grammar", "grammar": format}}
    tool: Any = {"type": "custom", "name": "calc", "format": {"type": "grammar", **format}}
    fits = re.compile(r"[0-9]{1,3}(\+[0-9]{1,3}){1,3}")
    with openai.OpenAI(base_url=f"{up.url()}/v1", api_key="none", max_retries=0) as client:
        turns: list[Any] = [{"role": "user", "content": "What is one and two?"}]
        ask: dict[str, Any] = {"model": "busway-tiny", "messages": turns, "tools": [{"type": "custom", "custom": spec}]}
        chat = client.chat.completions.create(**ask, tool_choice="required", max_tokens=100).choices[0]
        free = client.chat.completions.create(**ask, max_tokens=100, temperature=1.5).choices[0]
        cut = client.chat.completions.create(**ask, tool_choice="required", max_tokens=5).choices[0]
        with client.responses.stream(
            model="busway-tiny", input="One and two?", tools=[tool], tool_choice="required", max_output_tokens=100
        ) as stream:
            deltas = "".join(each.delta for each in stream if each.type == "response.custom_tool_call_input.delta")
            made = stream.get_final_response()
        output: Any = [{"type": "custom_tool_call_output", "call_id": made.output[-1].call_id, "output": "3"}]
        last = client.responses.create(
            model="busway-tiny", input=output, previous_response_id=made.id, tools=[tool], max_output_tokens=8
        )
    assert chat.finish_reason == "tool_calls"
    for call in (chat.message.tool_calls or []) + (free.message.tool_calls or []):
        assert call.type == "custom"
        assert fits.fullmatch(call.custom.input)
    assert (cut.finish_reason, cut.message.content or "", cut.message.tool_calls or []) == ("length", "", [])
    assert made.output[-1].type == "custom_tool_call"
    assert fits.fullmatch(made.output[-1].input)
    assert deltas == "".join(item.input for item in made.output if item.type == "custom_tool_call")
    assert last.output_text


ASKED: Any = {"model": "busway-tiny", "messages": [{"role": "user", "content": "What is Busway?"}], "max_tokens": 40}
CALLED: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
PROMPT: Any = {"model": "busway-tiny", "input": "What is Busway?", "max_output_tokens": 40}
OBJECT: Any = {
    "type": "json_schema",
    "name": "x",
    "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}},
}
SHAPES: Any = [
    ("chat/completions", ASKED, ChatCompletion, ChatCompletionChunk),
    ("chat/completions", ASKED | {"service_tier": "fast"}, ChatCompletion, ChatCompletionChunk),
    ("chat/completions", ASKED | {"logprobs": True, "top_logprobs": 2, "n": 2}, ChatCompletion, ChatCompletionChunk),
    ("chat/completions", ASKED | {"tools": [CALLED], "tool_choice": "required"}, ChatCompletion, ChatCompletionChunk),
    ("chat/completions", ASKED | {"functions": [CALLED["function"]]}, ChatCompletion, ChatCompletionChunk),
    ("completions", {"model": "busway-tiny", "prompt": "Hi", "max_tokens": 9, "logprobs": 2}, Completion, None),
    ("responses", PROMPT, Response, ResponseStreamEvent),
    ("responses", PROMPT | {"text": {"format": OBJECT}}, Response, ResponseStreamEvent),
    ("responses", PROMPT | {"include": ["message.output_text.logprobs"]}, Response, ResponseStreamEvent),
    (
        "responses",
        PROMPT | {"tools": [{"type": "custom", "name": "c"}, CALLED["function"] | {"type": "function"}],
                  "tool_choice": "required"},
        Response,
        ResponseStreamEvent,
    ),
    ("responses/input_tokens", {"model": "busway-tiny", "input": "Hi"}, InputTokenCountResponse, None),
    ("embeddings", {"model": "busway-tiny", "input": ["Hi", "Ho"]}, CreateEmbeddingResponse, None),
    ("messages", ASKED, Message, RawMessageStreamEvent),
    ("messages", ASKED | {"tools": [{"name": "weather", "input_schema": SCHEMA}]}, Message, RawMessageStreamEvent),
    ("messages/count_tokens", {k: ASKED[k] for k in ("model", "messages")}, MessageTokensCount, None),
]  # fmt: skip


def fetch(url: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"content-type": "application/json"})) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize(("path", "body", "whole", "event"), SHAPES)
def test_every_answer_is_of_the_type_that_the_clients_say(up: Up, path: str, body: Any, whole: Any, event: Any) -> None:
    url = f"{up.url()}/v1/{path}"
    TypeAdapter(whole).validate_json(fetch(url, body), strict=True)
    if event is None:
        return
    lines = fetch(url, {**body, "stream": True}).decode().split("\n")
    events = [data for line in lines if (data := line.removeprefix("data: ")) != line and data != "[DONE]"]
    assert len(events) > 2
    for data in events:
        if data != '{"type":"ping"}':
            TypeAdapter(event).validate_json(data, strict=True)


def test_files_and_batches_are_of_the_types_that_the_client_says(up: Up, wait_for: Callable[..., float]) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": ASKED}
    url = f"{up.url()}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        upload = client.files.with_raw_response.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
        file = TypeAdapter(FileObject).validate_json(upload.text, strict=True)
        made = client.batches.with_raw_response.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = TypeAdapter(Batch).validate_json(made.text, strict=True)

        def read() -> Batch:
            found: Batch = TypeAdapter(Batch).validate_json(fetch(f"{url}/batches/{batch.id}"), strict=True)
            return found

        wait_for(lambda: read().status == "completed")
        answer = json.loads(fetch(f"{url}/files/{read().output_file_id}/content"))
        TypeAdapter(ChatCompletion).validate_python(answer["response"]["body"], strict=True)
        listed = {
            "files": (json.loads(fetch(f"{url}/files")), FileObject),
            "batches": (json.loads(fetch(f"{url}/batches")), Batch),
            "models": (json.loads(fetch(f"{url}/models")), Model),
        }
        for kind, (page, shape) in listed.items():
            assert page["object"] == "list", kind
            assert TypeAdapter(list[shape]).validate_python(page["data"], strict=True), kind
        deleted = client.files.with_raw_response.delete(file.id)
        TypeAdapter(FileDeleted).validate_json(deleted.text, strict=True)


def test_a_background_response_of_a_frontend_that_was_killed_has_failed(up: Up, wait_for: Callable[..., float]) -> None:
    worker = up.pid("worker-0")
    os.kill(worker, signal.SIGSTOP)
    try:
        with openai.OpenAI(base_url=f"{up.url()}/v1", api_key="none", max_retries=5) as client:
            asked = client.responses.create(model="busway-tiny", input="Hi", background=True)
            assert client.responses.retrieve(asked.id).status in ("queued", "in_progress")
            os.kill(up.maker(asked.id), signal.SIGKILL)
            wait_for(lambda: client.responses.retrieve(asked.id).status == "failed")
            error = client.responses.retrieve(asked.id).error
    finally:
        os.kill(worker, signal.SIGCONT)
    assert error is not None
    assert "gone" in error.message
