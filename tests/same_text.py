"""I/O. The same requests again and again: what a client gets must not depend on who computes which part of it."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import msgspec
import openai

MAX_TOKENS = 12
ALIKE = 2e-4
"""Log-probabilities of one token may differ by so much: sums of float32 in another order."""
KINDS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 7},
    "logprobs": {"temperature": 0.0, "logprobs": 3},
    "grammar": {"temperature": 1.0, "seed": 5, "structured_outputs": {"regex": "[a-h]{8}-[0-9]{16}"}},
}


class Said(msgspec.Struct, frozen=True):
    """What came back for one request."""

    request_id: str
    text: str
    finish_reason: str
    tokens: list[int]
    logprobs: list[float]
    """Of the tokens, and then of the alternatives to each."""
    alternatives: list[list[str]]

    def is_like(self, other: "Said") -> bool:
        """Say whether a client could tell the one from the other."""
        mine = (self.text, self.finish_reason, self.tokens, self.alternatives)
        theirs = (other.text, other.finish_reason, other.tokens, other.alternatives)
        near = all(abs(one - two) < ALIKE for one, two in zip(self.logprobs, other.logprobs, strict=True))
        return mine == theirs and near


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """Talk to a frontend while the context is open; nothing is tried twice."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60.0) as client:
        yield client


async def ask_each(
    client: openai.AsyncOpenAI, cases: Iterable[tuple[str, int]], *, salt: str, at_once: int = 1
) -> dict[tuple[str, int], Said]:
    """Ask for each kind and length of prompt, `at_once` of them at a time; `salt` keeps caches of runs apart."""
    said: dict[tuple[str, int], Said] = {}
    model = (await client.models.list()).data[0].id
    limiter = anyio.CapacityLimiter(at_once)

    async def ask(kind: str, length: int) -> None:
        async with limiter:
            said[kind, length] = await _ask(client, model, kind, length, salt)

    async with anyio.create_task_group() as tasks:
        for kind, length in cases:
            tasks.start_soon(ask, kind, length)
    return said


async def _ask(client: openai.AsyncOpenAI, model: str, kind: str, length: int, salt: str) -> Said:
    options: dict[str, Any] = dict(KINDS[kind])
    prompt = Random(length).choices(range(300, 1500), k=length)
    extra: dict[str, Any] = {"cache_salt": f"{salt}-{kind}", "return_token_ids": True}
    if "structured_outputs" in options:
        extra["structured_outputs"] = options.pop("structured_outputs")
    answer = await client.completions.create(
        model=model, prompt=prompt, max_tokens=MAX_TOKENS if kind != "grammar" else 40, extra_body=extra, **options
    )
    (choice,) = answer.choices
    rows = choice.logprobs
    tops = [sorted(top.items()) for top in (rows.top_logprobs or [])] if rows else []
    return Said(
        answer.id.removeprefix("cmpl-"),
        choice.text,
        choice.finish_reason,
        (choice.model_extra or {})["token_ids"],
        [*(rows.token_logprobs or []), *(value for top in tops for _, value in top)] if rows else [],
        [[token for token, _ in top] for top in tops],
    )
