"""I/O. What is in a batch's files: lines that are read, and those that its output and its errors are made of."""

import time
from collections.abc import AsyncIterator

import structlog

from bus.errors import Conflict
from bus.messages.batches import StoredBatch, TokensUsed
from frontend.batch.lines import LineSplitter, missing, name_line, read_line, used_by
from frontend.batch.store import Batches, Found
from frontend.files import Files

log = structlog.get_logger()


async def read_lines(files: Files, stored: StoredBatch) -> AsyncIterator[tuple[int, bytes | None]]:
    """Yield the lines of the input; raise `NoSuchFile` when it was deleted."""
    splitter = LineSplitter()
    file = await files.find(stored.tenant, stored.input_file)
    async for piece in files.read(stored.tenant, stored.input_file, file):
        for each in splitter.feed(piece):
            yield each
    for each in splitter.finish():
        yield each


async def write_files(batches: Batches, files: Files, batch: str, found: Found) -> None:
    """Write output and errors in the order of the input, and end the batch.

    The files' ids follow from the batch's: writing them again after a death writes the same. A line without a result
    was never run, for lack of time, or its result was lost by the broker: then the batch goes back to run it.
    Raises `Conflict` when another one changed the batch meanwhile.
    """
    stored = found.stored
    is_cancelled = stored.cancelling_at is not None
    name = batch.removeprefix("batch_")
    output = files.begin(stored.tenant, f"file-{name}00", is_made=True)
    errors = files.begin(stored.tenant, f"file-{name}01", is_made=True)
    number = num_completed = num_missing = 0
    used = TokensUsed()
    async for _, line in read_lines(files, stored):
        number += 1
        result = await batches.result(batch, number)
        if result is not None and result.is_completed:
            num_completed += 1
            used += used_by(result.line)
            await output.write(result.line + b"\n")
            continue
        if result is None:
            if not is_cancelled and time.time() < stored.expires_at:
                await batches.change(batch, found, status="in_progress", finalizing_at=None)
                log.warning("batch.result_lost", batch=batch)
                return
            num_missing += 1
            shown = missing(name_line(batch, number), read_line(line or b"").custom_id, is_cancelled=is_cancelled)
        else:
            shown = result.line
        await errors.write(shown + b"\n")
    if num_missing and (await batches.find(stored.tenant, batch)).revision != found.revision:
        raise Conflict(f"{batch} has ended meanwhile by another's hand: its results are gone")
    for file, kind in ((output, "output"), (errors, "error")):
        if file.num_bytes:
            await file.finish(f"{batch}_{kind}.jsonl", "batch_output")
    await batches.change(
        batch,
        found,
        status="cancelled" if is_cancelled else "expired" if num_missing else "completed",
        ended_at=time.time(),
        output_file=output.file if output.num_bytes else "",
        error_file=errors.file if errors.num_bytes else "",
        num_completed=num_completed,
        num_failed=number - num_completed,
        used=used,
    )
