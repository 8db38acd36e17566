"""An answer reads the same whether or not a worker was lost while it was made, with all that a client may ask for."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from bus.messages.base import pack_u32
from bus.messages.inference import Accepted, Failed, Finished, GenerateJob, PromptLogprobs, TokenLogprobs

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
ASK = [{"role": "user", "content": "What is Busway?"}]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
SAID = '<think>Look 😀</think>It is so.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"


class Loser:
    """Says a text of which a job's seed chooses the form; first attempts are lost after `lost_after` tokens."""

    def __init__(self, stage: Any, text: str, lost_after: int | None) -> None:
        self._stage = stage
        self._tokens = stage.tokenizer.encode(text).ids
        self._lost_after = lost_after

    def __call__(self, job: GenerateJob) -> None:
        # Choices have seeds that follow each other: each says one token less than the one before.
        tokens = self._tokens[: len(self._tokens) - job.sampling.seed % 2]
        is_lost = self._lost_after is not None and not job.attempt
        start, end = len(job.output) // 4, min(self._lost_after or 0, len(tokens)) if is_lost else len(tokens)
        rows = range(start, end)
        wants = job.sampling.top_logprobs is not None
        prompt = len(job.prompt) // 4
        told = PromptLogprobs(job.ticket, 1, [-0.1 * at for at in range(1, prompt)])
        self._stage.worker.send(
            job.frontend,
            accepted=[Accepted(job.ticket)],
            prompt_logprobs=[] if job.prompt_logprobs is None else [told],
            tickets=pack_u32([job.ticket] * len(rows)),
            offsets=pack_u32(rows),
            tokens=pack_u32(tokens[start:end]),
            logprobs=[TokenLogprobs(job.ticket, row, -0.25 * row, [5, 6], [-0.5, -1.5]) for row in rows if wants],
            finished=[] if is_lost else [Finished(job.ticket, len(tokens), "stop", 3)],
            failed=[Failed(job.ticket, "engine_died", "lost", True)] if is_lost else [],
        )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": ASK, "n": 2, "logprobs": True, "top_logprobs": 2, "tools": TOOLS}),
        (CHAT, {"messages": ASK, "stop": [" so.<", "Köln"], "include_stop_str_in_output": True, "n": 2}),
        (CHAT, {"messages": ASK, "tools": TOOLS, "tool_choice": "required", "return_token_ids": True}),
        (CHAT, {"messages": ASK, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        (CHAT, {"messages": ASK, "response_format": {"type": "json_object"}, "min_tokens": 3}),
        (COMPLETE, {"prompt": ["What is", "a bus"], "n": 2, "echo": True, "logprobs": 2, "stop": "is so"}),
    ],
)
async def test_a_lost_attempt_changes_nothing_in_an_answer(stage: OpenStage, path: str, fields: dict[str, Any]) -> None:
    async with stage(template=TEMPLATE, write_gap_s=0.0) as on:
        length = len(on.tokenizer.encode(SAID).ids)
        for is_stream in (False, True):
            options = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
            answers = []
            for lost_after in (None, 0, 1, length // 2, length - 2):
                on.worker.jobs.clear()
                on.worker.script = Loser(on, SAID, lost_after)
                body = {"model": "tiny", "seed": 6, "max_tokens": length + 5, **fields, **options}
                status, _, answer = await on.post(path, body)
                assert status == 200, answer
                answers.append(read(answer))
                retried = {job.request_id for job in on.worker.jobs if job.attempt}
                if lost_after is not None and "stop" not in fields:
                    assert retried == {job.request_id for job in on.worker.jobs}
                for job in on.worker.jobs:
                    (first,) = [o for o in on.worker.jobs if (o.request_id, o.attempt) == (job.request_id, 0)]
                    assert (job.grammar, job.sampling, job.stopping) == (first.grammar, first.sampling, first.stopping)
            assert all(answer == answers[0] for answer in answers), answers
            assert bool(answers[0]["calls"]) == ("tools" in fields)
            if answers[0]["calls"]:
                called = "stop" if isinstance(fields.get("tool_choice"), dict) else "tool_calls"
                assert answers[0]["reasons"][0] == called


def read(answer: Any) -> dict[str, Any]:
    """Return what an answer says, of a stream joined, by choice."""
    parts = [answer]
    if isinstance(answer, bytes):
        *events, done, end = answer.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        parts = [json.loads(event.removeprefix("data: ")) for event in events]
    shown: dict[str, Any] = {"texts": {}, "calls": {}, "logprobs": {}, "ids": {}, "reasons": {}, "usage": None}
    for part in parts:
        if part.get("usage"):
            shown["usage"] = (part["usage"]["prompt_tokens"], part["usage"]["completion_tokens"])
        for choice in part["choices"]:
            index = choice["index"]
            said = choice.get("delta") or choice.get("message") or choice
            for name in ("content", "text", "reasoning"):
                joined = shown["texts"].get((index, name), "") + (said.get(name) or "")
                shown["texts"][index, name] = joined
            for call in said.get("tool_calls", []):
                name, arguments = shown["calls"].get((index, call.get("index", 0)), ("", ""))
                function = call["function"]
                shown["calls"][index, call.get("index", 0)] = (
                    name + function.get("name", ""),
                    arguments + function["arguments"],
                )
            for name, entries in (choice["logprobs"] or {}).items():
                shown["logprobs"].setdefault((index, name), []).extend(entries or [])
            shown["ids"].setdefault(index, []).extend(choice.get("token_ids", []))
            if choice["finish_reason"]:
                assert index not in shown["reasons"], "one end for each choice"
                shown["reasons"][index] = choice["finish_reason"]
    return shown
