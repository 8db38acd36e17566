"""I/O. The handlers of batches."""

import secrets
import time

import msgspec

from bus.errors import InvalidRequest
from bus.messages.batches import StoredBatch
from frontend.auth.identity import caller
from frontend.batch.store import Batches
from frontend.doors.call import Call, Reply, json_reply
from frontend.doors.routes import Doc, Route
from frontend.files import Files, NoSuchFile
from frontend.intake import Intake
from frontend.openai.batches import BatchBody, BatchShown, batch_body, show_batch
from frontend.openai.files import MAX_PAGE, Listing, listing
from frontend.pages import cut, read_page, read_query

WINDOW_S = 86_400
_DEFAULT_PAGE = 20
_MAX_BODY_BYTES = 64 * 2**10


class BatchDoor:
    """Takes and shows batches; `frontend.batch.runner` does what they ask for."""

    def __init__(self, intake: Intake, batches: Batches, files: Files) -> None:
        self._intake = intake
        self._batches = batches
        self._files = files

    def routes(self) -> list[Route]:
        """Return the routes."""
        shown = Doc(answer=BatchShown)
        return [
            Route("POST", "/v1/batches", self.create, doc=Doc(BatchBody, BatchShown)),
            Route("GET", "/v1/batches", self.list, doc=Doc(answer=Listing[BatchShown], query=("limit", "after"))),
            Route("GET", "/v1/batches/{batch}", self.show, doc=shown),
            Route("POST", "/v1/batches/{batch}/cancel", self.cancel, doc=shown),
        ]

    async def create(self, call: Call) -> Reply:
        """Begin a batch."""
        body, ignored = await self._intake.decode(batch_body, await call.read_json(_MAX_BODY_BYTES))
        try:
            file = await self._files.find(caller.get().tenant, body.input_file_id)
        except NoSuchFile as error:
            raise InvalidRequest(f"{error}. Upload it with POST /v1/files.", param="input_file_id") from error
        if file.purpose != "batch":
            raise InvalidRequest(f"The file's purpose is {file.purpose!r}, not 'batch'.", param="input_file_id")
        identity, now = caller.get(), time.time()
        key = None if identity.account is None else identity.account.key
        stored = StoredBatch(
            tenant=identity.tenant,
            models=[] if key is None else key.models,
            cache_salt="" if key is None else key.cache_salt,
            input_file=body.input_file_id,
            endpoint=body.endpoint,
            metadata=body.metadata or {},
            created_at=now,
            expires_at=now + WINDOW_S,
        )
        batch = f"batch_{secrets.token_hex(12)}"
        await self._batches.create(batch, stored)
        return _reply(batch, stored, ignored)

    async def list(self, call: Call) -> Reply:
        """List batches, the newest first."""
        page = read_page(read_query(call.exchange.query), default=_DEFAULT_PAGE, most=MAX_PAGE)
        found = await self._batches.listed(caller.get().tenant)
        return Reply(listing(cut([(batch, show_batch(batch, stored)) for batch, stored in found], page)))

    async def show(self, call: Call) -> Reply:
        """Show how far a batch is."""
        batch = call.params["batch"]
        return _reply(batch, (await self._batches.find(caller.get().tenant, batch)).stored)

    async def cancel(self, call: Call) -> Reply:
        """Cancel a batch: what was done stays, nothing more is run."""
        batch = call.params["batch"]
        return _reply(batch, await self._batches.cancel(caller.get().tenant, batch))


def _reply(batch: str, stored: StoredBatch, ignored: tuple[str, ...] = ()) -> Reply:
    return json_reply(msgspec.json.encode(show_batch(batch, stored)), ignored)
