"""What a request of the Responses API goes on from: stored items, as many as one request may have read."""

import json
from typing import Any

import msgspec
import pytest

from bus.errors import InvalidRequest
from bus.messages.responses import StoredResponse
from bus.testing import MemoryBroker
from frontend.responses.answers import item_id, response_id
from frontend.responses.body import prompt_body
from frontend.responses.conversation import MAX_REFERRED, Asked, Conversations
from frontend.responses.items import MessageItem
from frontend.responses.store import NoSuchResponse, ResponseStore
from frontend.responses.works import Works

pytestmark = pytest.mark.anyio

RESPONSES = [response_id(f"{number:032x}", "f-1") for number in range(MAX_REFERRED + 1)]


def stored(response: str) -> StoredResponse:
    """Return a response that came to two messages."""
    texts = [{"type": "message", "id": item_id("msg", response, at), "role": "user", "content": "x"} for at in (0, 1)]
    rendered = msgspec.json.encode({"output": texts})
    return StoredResponse(tenant="me", frontend="f-1", status="completed", previous="", input=b"[]", response=rendered)


async def read(tenant: str, references: list[str]) -> Asked:
    """Read an input of references, with all of `RESPONSES` stored."""
    async with MemoryBroker().connect("one") as bus:
        await bus.ensure()
        store = ResponseStore(bus)
        for response in RESPONSES:
            await store.put(response, stored(response))
        given: list[Any] = [{"type": "item_reference", "id": reference} for reference in references]
        body = prompt_body.decode(json.dumps({"model": "m", "input": given}).encode())[0]
        return await Conversations(store, Works(bus, "f-1"), max_bytes=2**20).read(tenant, body, 100)


async def test_items_are_referred_to_as_often_as_one_likes() -> None:
    asked = await read("me", [item_id("msg", RESPONSES[0], at % 2) for at in range(1000)])
    assert asked.items == [MessageItem("user", "x")] * 1000


async def test_references_are_bounded_by_the_responses_that_are_read_for_them() -> None:
    with pytest.raises(InvalidRequest, match="more than 64 responses") as refused:
        await read("me", [item_id("msg", response, 0) for response in RESPONSES])
    assert refused.value.param == "input[64]"


@pytest.mark.parametrize(
    ("tenant", "reference"),
    [("me", item_id("msg", RESPONSES[0], 2)), ("me", "msg_1"), ("other", item_id("msg", RESPONSES[0], 0))],
)
async def test_what_is_not_there_or_not_the_callers_is_not_found(tenant: str, reference: str) -> None:
    with pytest.raises(NoSuchResponse) as missing:
        await read(tenant, [reference])
    assert missing.value.param == "input[0]"
