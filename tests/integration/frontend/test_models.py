"""Models come and go with their cards."""

import json
from collections.abc import Callable

import anyio
import anyio.lowlevel
import msgspec
import pytest
from structlog.testing import capture_logs
from tokenizers import Tokenizer

from bus.codec import encode
from bus.errors import BuswayError, NoWorker, UnknownModel
from bus.messages.fleet import ModelCard
from bus.protocol import Bus
from bus.registry import REGISTRY
from bus.testing import MemoryBroker
from frontend.fleet import Fleet
from frontend.models import REMEMBER_S, Models


async def wait_until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - a condition, not an event
            await anyio.sleep(0.01)


def refusal_of(models: Models, name: str) -> type[BuswayError]:
    with pytest.raises(BuswayError) as caught:
        models.find(name)
    return type(caught.value)


async def put_files(bus: Bus, tokenizer: Tokenizer) -> ModelCard:
    """Store a model's files; return its card."""
    config = json.dumps({"eos_token": "<|end|>"}).encode()
    return ModelCard(
        model="tiny",
        max_model_len=512,
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_ids=[0],
        files={
            "tokenizer.json": await bus.put_blob(tokenizer.to_str().encode()),
            "tokenizer_config.json": await bus.put_blob(config),
        },
        created_at=0.0,
    )


@pytest.mark.anyio
async def test_a_model_that_nobody_serves_any_more_is_forgotten_in_the_end(tokenizer: Tokenizer) -> None:
    now = 0.0
    async with MemoryBroker().connect("f-1") as bus:
        await bus.ensure()
        card = await put_files(bus, tokenizer)
        registry = bus.bucket(REGISTRY)
        await registry.put("model.tiny", encode(card))
        models = Models(bus, Fleet(3.0), lambda: now)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(models.run)
            await wait_until(lambda: len(models.listed()) == 1)
            await registry.delete("model.tiny")
            await wait_until(lambda: not models.listed())
            assert refusal_of(models, "tiny") is NoWorker
            now = REMEMBER_S + 1
            await wait_until(lambda: refusal_of(models, "tiny") is UnknownModel)
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_refused_model_that_comes_back_as_it_was_is_refused_again() -> None:
    async with MemoryBroker().connect("f-1") as bus:
        await bus.ensure()
        files = {"tokenizer.json": await bus.put_blob(b"{")}
        card = ModelCard(model="m", max_model_len=8, vocab_size=8, eos_token_ids=[0], files=files, created_at=0.0)
        registry = bus.bucket(REGISTRY)
        models = Models(bus, Fleet(3.0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(models.run)
            for _ in range(2):
                await registry.put("model.m", encode(card))
                await wait_until(lambda: "model m: " in models.describe_unready())
                await registry.delete("model.m")
                await wait_until(lambda: "no model is registered" in models.describe_unready())
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_card_that_comes_while_the_same_model_is_built_builds_nothing(tokenizer: Tokenizer) -> None:
    with capture_logs() as logs:
        async with MemoryBroker().connect("f-1") as bus:
            await bus.ensure()
            card = await put_files(bus, tokenizer)
            registry = bus.bucket(REGISTRY)
            models = Models(bus, Fleet(3.0))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(models.run)
                await registry.put("model.tiny", encode(card))
                with anyio.fail_after(30):
                    while not models._waiting:
                        await anyio.lowlevel.checkpoint()
                    while models._waiting:
                        await anyio.lowlevel.checkpoint()
                await registry.put("model.tiny", encode(msgspec.structs.replace(card, created_at=1.0)))
                await wait_until(lambda: len(models.listed()) == 1 and models._is_settled)
                tasks.cancel_scope.cancel()
    assert [each["event"] for each in logs] == ["model.ready"]
