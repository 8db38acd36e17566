"""The description of the API holds together, and says what the answers are."""

import json
from typing import Any

import msgspec

from bus.messages.inference import TokenLogprobs
from frontend.deltas import AnswerFacts, CallArguments, CallStart, ChoiceEnd, ReasoningDelta, TextDelta
from frontend.doors.docs import Docs
from frontend.doors.routes import Doc, Route
from frontend.model import ServedModel
from frontend.openai.answers import ChatShown, ChunkShown
from frontend.openai.body import ChatBody
from frontend.openai.chunks import ChatDialect, StreamShape
from frontend.openapi import make_openapi
from frontend.pieces import TokenPiece
from frontend.request import Usage


async def handle(call: Any) -> None:
    """Do what
    is to be done.

    More words.
    """


def refs(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == "$ref"] + [
            r for value in node.values() for r in refs(value)
        ]
    return [r for value in node for r in refs(value)] if isinstance(node, list) else []


def test_every_route_is_described_and_every_reference_resolves() -> None:
    routes = [
        Route("POST", "/v1/chat/completions", handle, doc=Doc(ChatBody, ChatShown, ChunkShown)),
        Route("GET", "/v1/things/{id}/{rest...}", handle, doc=Doc(query=("limit",))),
        Route("POST", "/v1/things", handle, "plain", Doc(form=("file", "purpose"), status=201)),
        *Docs([]).routes(),
    ]
    document = json.loads(make_openapi(routes))
    schemas = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in refs(document)} <= set(schemas)
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["summary"] == "Do what is to be done."
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatBody"}
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "404", "429", "500", "503"} <= set(chat["responses"])
    thing = document["paths"]["/v1/things/{id}/{rest}"]["get"]
    assert [(each["name"], each["in"]) for each in thing["parameters"]] == [
        ("id", "path"),
        ("rest", "path"),
        ("limit", "query"),
    ]
    made = document["paths"]["/v1/things"]["post"]
    assert ("201" in made["responses"], "security" in made, "security" in thing) == (True, False, True)
    assert made["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["file"]
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] for path in document["paths"].values() for operation in path.values())


class StrictChunk(ChunkShown, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


def test_chunks_are_what_the_description_says(model: ServedModel) -> None:
    told = TokenLogprobs(1, 0, -0.5, [5], [-0.5])
    shape = StreamShape(include_usage=True, continuous_usage=True, logprobs_of=model.vocabulary)
    facts = AnswerFacts("id1", 1, "m", 3)
    dialect = ChatDialect(shape)
    chunks = dialect.chunks(facts, 2)
    deltas = [ReasoningDelta('"a"'), TextDelta("b\n"), CallStart(0, "call_1", "f"), CallArguments(0, '{"x": "é"}')]
    data = chunks.opening() + chunks.deltas(deltas, [TokenPiece(5, 0, told)])
    data += chunks.closing(ChoiceEnd("tool_calls"), Usage(3, 4, 0)) + dialect.ending(facts, Usage(3, 4, 0))
    *lines, done, rest = data.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    shown = [msgspec.json.decode(line.removeprefix("data: "), type=StrictChunk) for line in lines]
    first, thought, text, call, arguments, last, usage = shown
    assert first.choices[0].delta.role == "assistant"
    assert thought.choices[0].delta.reasoning == thought.choices[0].delta.reasoning_content == '"a"'
    assert (text.choices[0].delta.content, text.choices[0].index) == ("b\n", 2)
    assert (call.choices[0].delta.tool_calls[0].id, call.choices[0].delta.tool_calls[0].function.name) == (
        "call_1",
        "f",
    )
    assert arguments.choices[0].delta.tool_calls[0].function.arguments == '{"x": "é"}'
    assert last.choices[0].finish_reason == "tool_calls"
    assert b"content" in bytes(thought.choices[0].logprobs)
    assert bytes(text.choices[0].logprobs) == b"null"
    assert usage.usage is not None
    assert (usage.choices, usage.usage.completion_tokens) == ([], 4)
    assert text.usage is not None
    assert text.usage.completion_tokens == 1
