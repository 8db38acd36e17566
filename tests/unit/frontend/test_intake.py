"""What is prepared where: the event loop belongs to the tokens of others."""

import json
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from bus.config import FrontendConfig
from bus.errors import InvalidRequest
from frontend.dispatch import Dispatcher
from frontend.intake import IN_THREAD_FROM_BYTES, MAX_COMPILERS, Intake
from frontend.model import ServedModel
from frontend.models import Models
from frontend.openai.body import chat_body
from frontend.plan import Plan

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def intake() -> Intake:
    """Where nothing is served, only prepared."""
    return Intake(FrontendConfig(), cast(Models, None), cast(Dispatcher, None))


async def prepare(intake: Intake, model: ServedModel, **fields: Any) -> tuple[Plan, int]:
    """Return the plan, and how often the loop turned meanwhile."""
    body = json.dumps({"messages": MESSAGES} | fields).encode()
    plans: list[Plan] = []
    turns = 0

    async def work() -> None:
        plans.append(await intake.prepare(len(body), chat_body.decode(body)[0], model))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        with anyio.fail_after(30):
            while not plans:
                turns += 1
                await anyio.lowlevel.checkpoint()
    return plans[0], turns


def schema(num_properties: int, salt: int = 0) -> dict[str, Any]:
    """A small schema that takes long: each range becomes an expression over digits."""
    ranges = {f"p{n}": {"type": "integer", "minimum": n + salt, "maximum": 10**9 + n} for n in range(num_properties)}
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "properties": ranges}}}


async def test_plain_chat_takes_no_turn_of_the_loop(intake: Intake, model: ServedModel) -> None:
    plan, turns = await prepare(intake, model)
    assert plan.generations[0].grammar == ""
    assert turns <= 2


async def test_a_schema_leaves_the_loop_to_others_while_it_is_compiled(intake: Intake, model: ServedModel) -> None:
    wanted = schema(20)
    assert len(json.dumps(wanted)) < IN_THREAD_FROM_BYTES
    plan, turns = await prepare(intake, model, response_format=wanted)
    assert "p19" in plan.generations[0].grammar
    assert turns > 3


async def test_a_bad_schema_is_told_from_the_thread(intake: Intake, model: ServedModel) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nothing"}}}
    body = chat_body.decode(json.dumps({"messages": MESSAGES, "response_format": wanted}).encode())[0]
    with pytest.raises(InvalidRequest):
        await intake.prepare(100, body, model)


async def test_many_schemas_wait_for_each_other(intake: Intake, model: ServedModel) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(3 * MAX_COMPILERS):
            body = {"messages": MESSAGES, "response_format": schema(4, number)}
            decoded = chat_body.decode(json.dumps(body).encode())[0]
            tasks.start_soon(intake.prepare, 100, decoded, model)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        statistics = intake.compilers.statistics()
        assert (statistics.borrowed_tokens, statistics.tasks_waiting) == (MAX_COMPILERS, 2 * MAX_COMPILERS)
