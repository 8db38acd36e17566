"""I/O. Carries batches on: takes them from the stream JOBS, and runs their lines.

A job is in the stream until its batch has ended. Whoever has it says so every second and a half; when it dies, another
frontend gets the job and goes on: what a line came to is written once, under its number, and is not run again.
"""

import secrets
import time

import anyio
import structlog

from bus.codec import codec
from bus.errors import BuswayError, Conflict, Malformed, Retryable
from bus.messages.batches import ENDED, BatchJob, LineError, LineResult, StoredBatch
from bus.messages.keys import ApiKey
from bus.protocol import Bus, ConsumerSpec, Delivery, Pull
from frontend.auth.identity import Identity, caller
from frontend.auth.limits import Account
from frontend.batch.content import read_lines, write_files
from frontend.batch.lines import Validator, answered, name_line, read_line, unanswered
from frontend.batch.rescue import Rescue
from frontend.batch.slots import Slots
from frontend.batch.store import Batches, Found, NoSuchBatch
from frontend.batch.work import Work
from frontend.errors import answer_for, envelope
from frontend.files import Files, NoSuchFile

MAX_BATCHES = 16
"""Batches that one frontend carries at a time; more wait in the stream."""
MAX_DELIVERIES = 1_000
ACK_WAIT_S = 5.0
"""Silence after which a batch is somebody else's."""
BEAT_S = 1.5
LOOK_EVERY_S = 0.5
"""How often progress is written, and a cancellation is noticed."""
MAX_FAILURES = 3
"""Runs of a line that end with an error of the server's, before that error is its result."""
MAX_PAUSE_S = 10.0
MAX_NAK_S = 120.0
"""Pause before a batch that could not be carried on is taken again: the more often, the longer, for more than a day."""

_decode_job = codec(BatchJob).decode

log = structlog.get_logger()


class _Run:
    """The lines of one batch as they are run."""

    def __init__(self, batch: str, found: Found, *, is_resumed: bool) -> None:
        self.batch = batch
        self.found = found
        self.is_resumed = is_resumed
        self.num_completed = 0
        self.num_failed = 0

    def count(self, result: LineResult) -> None:
        self.num_completed += result.is_completed
        self.num_failed += not result.is_completed


class BatchRunner:
    """All batches that this frontend carries."""

    def __init__(self, bus: Bus, batches: Batches, files: Files, work: Work, slots: Slots) -> None:
        self._bus = bus
        self._batches = batches
        self._files = files
        self._work = work
        self._slots = slots
        self._rescue = Rescue(bus, batches)
        self._num_carried = 0
        self._batches_carried: set[str] = set()

    async def run(self, stopping: anyio.Event) -> None:
        """Carry batches until `stopping`; then hand them back for others."""
        spec = ConsumerSpec(
            stream="JOBS",
            name="batches",
            filter_subject=self._bus.subjects.job("*"),
            ack_wait_s=ACK_WAIT_S,
            max_deliver=MAX_DELIVERIES,
        )
        async with anyio.create_task_group() as tasks:

            def receive(delivery: Delivery) -> None:
                self._num_carried += 1
                tasks.start_soon(self._carry, delivery, pull)

            async with self._bus.pull(spec, receive) as pull:
                pull.grant(MAX_BATCHES)
                tasks.start_soon(self._slots.run)
                tasks.start_soon(self._rescue.run)
                await stopping.wait()
            tasks.cancel_scope.cancel()

    async def _carry(self, delivery: Delivery, pull: Pull) -> None:
        """Decide the fate of one job."""
        try:
            job: BatchJob = _decode_job(delivery.payload)
            if job.batch in self._batches_carried:
                # This process stood still, or the job was lost and found: it stays in the stream until the batch ends.
                delivery.nak(_pause_s(delivery))
                return
            self._batches_carried.add(job.batch)
            try:
                await self._carry_batch(delivery, job)
            finally:
                self._batches_carried.discard(job.batch)
        except Malformed as error:
            log.warning("batch.malformed", reason=str(error)[:200])
            delivery.term("malformed")
        finally:
            self._num_carried -= 1
            pull.grant(MAX_BATCHES - self._num_carried)

    async def _carry_batch(self, delivery: Delivery, job: BatchJob) -> None:
        async with anyio.create_task_group() as beating:
            beating.start_soon(_beat, delivery)
            try:
                await self._advance(job)
                delivery.ack()
            except NoSuchBatch:
                delivery.ack()
            except Retryable as error:
                log.warning("batch.interrupted", batch=job.batch, reason=str(error)[:200])
                delivery.nak(_pause_s(delivery))
            except anyio.get_cancelled_exc_class():
                delivery.nak()
                raise
            except Exception as error:
                log.error("batch.crashed", batch=job.batch, exc_info=error)
                delivery.nak(min(5.0 * delivery.num_delivered, MAX_NAK_S))
            beating.cancel_scope.cancel()

    async def _advance(self, job: BatchJob) -> None:
        """Take a batch from where it is to its end; raise `Retryable` for what another try may do."""
        is_fresh = False
        while True:
            found = await self._batches.find(job.tenant, job.batch)
            status = found.stored.status
            try:
                if status in ENDED:
                    for number in range(1, found.stored.num_lines + 1):
                        await self._batches.drop_result(job.batch, number)
                    log.info("batch.ended", batch=job.batch, status=status, num_lines=found.stored.num_lines)
                    return
                if status == "validating":
                    await self._validate(job.batch, found)
                    is_fresh = True
                elif status == "in_progress":
                    await self._run_lines(_Run(job.batch, found, is_resumed=not is_fresh))
                    is_fresh = False
                else:
                    await write_files(self._batches, self._files, job.batch, found)
            except Conflict:
                continue
            except (NoSuchFile, Malformed) as error:
                failure = LineError("invalid_file", str(error))
                await self._batches.change(job.batch, found, status="failed", ended_at=time.time(), errors=[failure])

    async def _validate(self, batch: str, found: Found) -> None:
        """Look at all lines; the batch is in progress then, or has failed."""
        validator = Validator(found.stored.endpoint)
        async for number, line in read_lines(self._files, found.stored):
            validator.check(number, line)
            if validator.is_full:
                break
        validator.finish()
        now = time.time()
        if validator.errors:
            await self._batches.change(batch, found, status="failed", ended_at=now, errors=validator.errors)
        else:
            await self._batches.change(
                batch, found, status="in_progress", in_progress_at=now, num_lines=validator.num_lines
            )

    async def _run_lines(self, run: _Run) -> None:
        """Run what has not been run; the batch is finalizing then, unless it was cancelled meanwhile."""
        stored = run.found.stored
        caller.set(_owner(stored))
        with anyio.move_on_after(max(0.0, stored.expires_at - time.time())):
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._watch, run, watching.cancel_scope)
                async with anyio.create_task_group() as lines:
                    number = 0
                    async for _, line in read_lines(self._files, stored):
                        number += 1
                        await self._slots.take()
                        lines.start_soon(self._run_line, run, number, line or b"")
                watching.cancel_scope.cancel()
        found = await self._batches.find(stored.tenant, run.batch)
        if found.stored.status == "in_progress":
            await self._batches.change(
                run.batch,
                found,
                status="finalizing",
                finalizing_at=time.time(),
                num_completed=run.num_completed,
                num_failed=run.num_failed,
            )

    async def _watch(self, run: _Run, scope: anyio.CancelScope) -> None:
        """Write progress; end the run when somebody changed the batch's state, which only a cancellation does."""
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            try:
                found = await self._batches.find(run.found.stored.tenant, run.batch)
                if found.stored.status != "in_progress":
                    scope.cancel()
                    return
                # One that goes on counts what was done before anew: meanwhile what was told stands.
                if run.num_completed + run.num_failed > found.stored.num_completed + found.stored.num_failed:
                    await self._batches.change(
                        run.batch, found, num_completed=run.num_completed, num_failed=run.num_failed
                    )
            except (Retryable, Conflict):
                continue
            except NoSuchBatch:
                scope.cancel()
                return

    async def _run_line(self, run: _Run, number: int, line: bytes) -> None:
        """Run one line, unless it was run before, and keep what it came to."""
        try:
            result = await self._kept(run, number) if run.is_resumed else None
            if result is None:
                result = await self._answer(run, number, line)
                await self._keep(run, number, line, result)
            run.count(result)
        finally:
            self._slots.release()

    async def _answer(self, run: _Run, number: int, line: bytes) -> LineResult:
        stored = run.found.stored
        given = read_line(line)
        line_id = name_line(run.batch, number)
        num_failures, pause_s = 0, 0.5
        while True:
            try:
                # An id of its own for each try: the broker drops a request that it has seen, for some seconds, and the
                # last try may be that of a frontend that died.
                request_id = f"{line_id}_{secrets.token_hex(4)}"
                body = await self._work.answer(stored.endpoint, request_id, bytes(given.body))
                return LineResult(is_completed=True, line=answered(line_id, given.custom_id, 200, body))
            except Exception as error:
                answer = answer_for(error)
                if not isinstance(error, BuswayError):
                    log.error("batch.line_crashed", batch=run.batch, line=number, exc_info=error)
                is_full = answer.status in (429, 503)
                num_failures += answer.status >= 500 and not is_full
                if not is_full and (answer.status < 500 or num_failures >= MAX_FAILURES):
                    rendered = answered(line_id, given.custom_id, answer.status, envelope(answer.error))
                    return LineResult(is_completed=False, line=rendered)
            if is_full:
                self._slots.slow_down()
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _kept(self, run: _Run, number: int) -> LineResult | None:
        while True:
            try:
                return await self._batches.result(run.batch, number)
            except Retryable:
                await anyio.sleep(LOOK_EVERY_S)

    async def _keep(self, run: _Run, number: int, line: bytes, result: LineResult) -> None:
        """Write a result, however long the broker is away."""
        while True:
            try:
                await self._batches.put_result(run.batch, number, result)
                return
            except Malformed:
                message = "The answer is too large to be kept in a batch."
                rendered = unanswered(
                    name_line(run.batch, number), read_line(line).custom_id, "answer_too_large", message
                )
                result = LineResult(is_completed=False, line=rendered)
            except Retryable:
                await anyio.sleep(LOOK_EVERY_S)


def _owner(stored: StoredBatch) -> Identity:
    """Return whose the lines are: with the models and the cache of the key that began the batch, without its rates."""
    key = ApiKey(name="batch", tenant=stored.tenant, models=stored.models, cache_salt=stored.cache_salt)
    return Identity(stored.tenant, Account(key, time.monotonic()))


def _pause_s(delivery: Delivery) -> float:
    """Return when a job is worth another delivery: the more often, the later."""
    return min(float(delivery.num_delivered), MAX_NAK_S)


async def _beat(delivery: Delivery) -> None:
    """Say that the job is being worked on, until cancelled."""
    while True:
        await anyio.sleep(BEAT_S)
        delivery.in_progress()
