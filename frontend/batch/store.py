"""I/O. Batches and the results of their lines, in buckets that every frontend reads."""

import re
import time
from typing import Any, NamedTuple

import msgspec

from bus.codec import codec, encode
from bus.errors import Conflict, Permanent
from bus.messages.batches import ENDED, BatchJob, LineResult, StoredBatch
from bus.protocol import Bus
from bus.subjects import slug

JOB_TIMEOUT_S = 5.0

_BATCH_ID = re.compile(r"batch_[0-9a-f]{24}\Z")

_decode = codec(StoredBatch).decode
_decode_result = codec(LineResult).decode
_decode_job = codec(BatchJob).decode


class NoSuchBatch(Permanent):
    """No such batch is stored, for this tenant."""

    code = "not_found"


class Found(NamedTuple):
    """A batch, and which version of it."""

    stored: StoredBatch
    revision: int


class Batches:
    """The batches of all tenants."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._entries = bus.bucket("BATCHES")
        self._results = bus.bucket("RESULTS")

    async def create(self, batch: str, stored: StoredBatch) -> None:
        """Store a batch and the job to carry it on; raise `QueueFull`, `BusUnavailable`."""
        key = _key(stored.tenant, batch)
        await self._entries.put(key, encode(stored))
        try:
            await self._put_job(stored.tenant, batch, msg_id=batch)
        except BaseException:
            await self._entries.delete(key)
            raise

    async def put_job_again(self, batch: str, found: Found) -> None:
        """Have a batch carried on whose job was lost; several who see to that at a time do it once."""
        await self._put_job(found.stored.tenant, batch, msg_id=f"{batch}:{found.revision}")

    async def find_without_job(self) -> dict[str, Found]:
        """Return the batches that have not ended and that nobody is to carry on, as far as can be seen."""
        entries = await self._entries.entries()
        found = {each.key.rpartition(".")[2]: Found(_decode(each.value or b""), each.revision) for each in entries}
        unended = {batch: each for batch, each in found.items() if each.stored.status not in ENDED}
        if unended:
            # After the entries: a job goes when the batch has ended.
            for payload in await self._bus.stored("JOBS", self._bus.subjects.job("*")):
                job: BatchJob = _decode_job(payload)
                unended.pop(job.batch, None)
        return unended

    async def _put_job(self, tenant: str, batch: str, *, msg_id: str) -> None:
        job = encode(BatchJob(tenant=tenant, batch=batch))
        await self._bus.append(self._bus.subjects.job(slug(tenant)), job, msg_id=msg_id, timeout_s=JOB_TIMEOUT_S)

    async def find(self, tenant: str, batch: str) -> Found:
        """Return a batch; raise `NoSuchBatch`."""
        entry = await self._entries.get(_key(tenant, batch)) if _BATCH_ID.match(batch) else None
        if entry is not None and entry.value is not None:
            stored: StoredBatch = _decode(entry.value)
            if stored.tenant == tenant:
                return Found(stored, entry.revision)
        raise NoSuchBatch(f"No such Batch object: {batch[:100]}")

    async def listed(self, tenant: str) -> list[tuple[str, StoredBatch]]:
        """Return all batches of a tenant by id, the newest first."""
        found = [(entry.key.rpartition(".")[2], _decode(entry.value or b"")) for entry in await self._entries.entries()]
        mine = [(batch, stored) for batch, stored in found if stored.tenant == tenant]
        return sorted(mine, key=lambda each: (-each[1].created_at, each[0]))

    async def change(self, batch: str, found: Found, **fields: Any) -> Found:
        """Write a batch with other fields; raise `Conflict` when somebody changed it since."""
        stored = msgspec.structs.replace(found.stored, **fields)
        revision = await self._entries.update(_key(stored.tenant, batch), encode(stored), revision=found.revision)
        return Found(stored, revision)

    async def cancel(self, tenant: str, batch: str) -> StoredBatch:
        """Have a batch stopped; return it as it is then. One that has ended, or is being cancelled, stays as it is."""
        while True:
            found = await self.find(tenant, batch)
            now = time.time()
            try:
                if found.stored.status == "validating":
                    # Whoever has it, or will have it, finds that nothing is to be done.
                    changed = await self.change(batch, found, status="cancelled", cancelling_at=now, ended_at=now)
                elif found.stored.status == "in_progress":
                    changed = await self.change(batch, found, status="cancelling", cancelling_at=now)
                else:
                    return found.stored
            except Conflict:
                continue
            return changed.stored

    async def result(self, batch: str, number: int) -> LineResult | None:
        """Return what a line came to."""
        entry = await self._results.get(f"{batch}.{number}")
        if entry is None or entry.value is None:
            return None
        found: LineResult = _decode_result(entry.value)
        return found

    async def put_result(self, batch: str, number: int, result: LineResult) -> None:
        """Write what a line came to, once: what is there already stays. Raises `Malformed` for one too large."""
        try:
            await self._results.update(f"{batch}.{number}", encode(result), revision=0)
        except Conflict:
            return

    async def drop_result(self, batch: str, number: int) -> None:
        """Forget what a line came to: it is in a file."""
        await self._results.delete(f"{batch}.{number}")


def _key(tenant: str, batch: str) -> str:
    return f"{slug(tenant)}.{batch}"
