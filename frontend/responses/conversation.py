"""I/O. What a request asks with: its items, after those of the stored responses that it continues."""

from collections.abc import Mapping, Sequence

import msgspec

from bus.errors import Conflict, InvalidRequest
from bus.messages.responses import ResponseStatus, StoredResponse
from frontend.intake import off_loop
from frontend.responses.answers import ErrorShown, response_of, with_outcome
from frontend.responses.body import PromptBody
from frontend.responses.items import Item, ItemReference, decode_item
from frontend.responses.store import Found, NoSuchResponse, ResponseStore, output_items
from frontend.responses.works import Works

UNFINISHED: frozenset[ResponseStatus] = frozenset({"queued", "in_progress"})
_CONTINUABLE: frozenset[ResponseStatus] = frozenset({"completed", "incomplete"})
MAX_REFERRED = 64
"""Stored responses whose items one request may refer to: each is read, and may have megabytes."""
_GONE = ErrorShown("server_error", "The frontend that made this response is gone. Send the request again.")


class Asked(msgspec.Struct, frozen=True):
    """A decoded request with its conversation."""

    input: list[msgspec.Raw]
    """The items that came with it."""
    items: list[Item]
    """The whole conversation."""
    num_bytes: int


class Conversations:
    """Finds stored responses and puts conversations together."""

    def __init__(self, store: ResponseStore, works: Works, *, max_bytes: int) -> None:
        """`max_bytes` bounds a conversation."""
        self._store = store
        self._works = works
        self._max_bytes = max_bytes

    async def read(self, tenant: str, body: PromptBody, num_bytes: int) -> Asked:
        """Decode the input and put the stored conversation before it."""
        given = body.input if body.input is not None else []
        if isinstance(given, str):
            text = msgspec.json.encode(given)
            given = [msgspec.Raw(b'{"type":"message","role":"user","content":%b}' % text)]
        before: list[msgspec.Raw] = []
        if body.previous_response_id is not None:
            last = await self.find(tenant, body.previous_response_id, param="previous_response_id")
            if last.stored.status not in _CONTINUABLE:
                raise InvalidRequest(
                    f"Response {body.previous_response_id!r} is {last.stored.status}: only one that has been completed "
                    "can be continued.",
                    param="previous_response_id",
                )
            before = await self._store.conversation(last, limit_bytes=self._max_bytes)
        num_bytes += sum([len(bytes(raw)) for raw in before])
        earlier = await off_loop(num_bytes, _decode_items, before)
        decoded = await off_loop(num_bytes, _decode_items, given)
        items: list[Item] = []
        referred: dict[str, Mapping[str, Item]] = {}
        for number, item in enumerate([*earlier, *decoded]):
            if isinstance(item, ItemReference):
                items.append(await self._resolve(tenant, item, f"input[{number}]", referred))
            else:
                items.append(item)
        return Asked(list(given), items, num_bytes)

    async def _resolve(
        self, tenant: str, reference: ItemReference, param: str, referred: dict[str, Mapping[str, Item]]
    ) -> Item:
        """Return the output item of a stored response that is meant; `referred` keeps the responses that were read."""
        response = response_of(reference.id) or ""
        if response and response not in referred:
            if len(referred) >= MAX_REFERRED:
                raise InvalidRequest(f"'input' refers to more than {MAX_REFERRED} responses.", param=param)
            found = await self.find(tenant, response, param=param)
            referred[response] = await off_loop(len(found.stored.response), _output_by_id, found.stored)
        item = referred.get(response, {}).get(reference.id)
        if item is None:
            raise NoSuchResponse(f"Item with id {reference.id[:100]!r} not found.", param=param)
        return item

    async def find(self, tenant: str, response: str, *, param: str = "response_id") -> Found:
        """Return a stored response, settled: what nobody makes any more has failed. Raises `NoSuchResponse`."""
        found = await self._store.find(tenant, response)
        if found is None or found.stored.status in UNFINISHED:
            is_running = await self._works.ask(response)
            if not is_running:
                found = await self._store.find(tenant, response)
                if is_running is False and found is not None and found.stored.status in UNFINISHED:
                    found = await self._mark_failed(found, tenant, response)
        if found is None:
            raise NoSuchResponse(f"Response with id {response[:100]!r} not found.", param=param)
        return found

    async def _mark_failed(self, found: Found, tenant: str, response: str) -> Found | None:
        rendered = with_outcome(found.stored.response, "failed", _GONE)
        stored = msgspec.structs.replace(found.stored, status="failed", response=rendered)
        try:
            await self._store.replace(found, stored)
        except Conflict:
            return await self._store.find(tenant, response)
        return found._replace(stored=stored)


def _output_by_id(stored: StoredResponse) -> Mapping[str, Item]:
    """Return the output items of a response."""
    items = [(raw, decode_item(raw, number)) for number, raw in enumerate(output_items(stored))]
    return {
        msgspec.json.decode(raw, type=ItemReference).id: item
        for raw, item in items
        if not isinstance(item, ItemReference)
    }


def _decode_items(given: Sequence[msgspec.Raw]) -> list[Item | ItemReference]:
    return [decode_item(raw, number) for number, raw in enumerate(given)]
