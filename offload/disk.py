"""I/O. The tier on a local disk: one file of slots, read and written past the page cache, that outlives the worker.

Unbuffered I/O takes no memory from the engine and no second copy; several threads keep the device busy.
"""

import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio
import structlog
from anyio import CapacityLimiter, to_thread

from bus.errors import BadConfig
from bus.messages.kv import KvEvent
from bus.metrics import OFFLOAD_BLOCKS, OFFLOAD_HELD_BLOCKS
from offload.host import stride_bytes
from offload.journal import ENTRY_BYTES, Entry, read_entries, write_entry, write_superblock
from offload.key import BlockKey, Space, space_of
from offload.slots import Slots
from offload.tier import Frame, Medium, Presence, Retention

NUM_READERS = 4
NUM_WRITERS = 3
"""Threads. Readers never wait for writers, and other stores are ready when one is written: the disk has no pauses."""
MAX_RUN_BYTES = 8 * 2**20
"""Of neighbouring frames that one call of the system moves: it is cut up there, and the device kept busy with all."""
MAX_FRAMES = 512
"""Of a run: systems take no more than 1,024 pieces in a call."""
MAX_HAUL = 4
"""Runs that a thread moves before others may have it: a long load shares the disk, and leaves no gap between runs."""
NUM_NEWEST = 32
MAX_FILES = 64
"""Workers that can share a directory."""

T = TypeVar("T")
Run = tuple[int, list[memoryview]]
"""A slot, and what belongs into it and those behind it."""

log = structlog.get_logger()
_held = OFFLOAD_HELD_BLOCKS.labels("disk")
_evicted = OFFLOAD_BLOCKS.labels("disk", "evicted")


class DiskTier:
    """Frames in a file, by slot. Made by `open_disk`."""

    name = "disk"
    medium: Medium = "disk"
    owner = ""

    def __init__(self, slots: Slots, files: "_Files", found: Sequence[Entry]) -> None:
        """`found` is what an earlier worker left in the slots, oldest first."""
        self.newest = [(entry.key, entry.parent_hash) for entry in found[-NUM_NEWEST:]]
        """Blocks that were here at the start, and the hashes of those before them: something to measure with."""
        self._slots = slots
        self._files = files
        self._order = count(found[-1].order + 1 if found else 0)
        self._readers = CapacityLimiter(NUM_READERS)
        self._writers = CapacityLimiter(NUM_WRITERS)

    def lookup(self, keys: Sequence[BlockKey]) -> list[Presence]:
        """See `Tier.lookup`."""
        return self._slots.lookup(keys)

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """See `Tier.touch`."""
        self._slots.touch(keys)

    def take_events(self) -> list[KvEvent]:
        """See `Tier.take_events`; what was found at the start is told first."""
        events = self._slots.take_events()
        if events:
            _held.set(len(self._slots))
            _evicted.inc(self._slots.take_num_evicted())
        return events

    async def remove(self, keys: Sequence[BlockKey]) -> None:
        """See `Tier.remove`."""
        self._slots.remove(keys)

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        """See `Tier.store`; a disk that hangs is waited for. Takes one thread: several stores keep the disk busy."""
        now = time.time()
        taken = [self._slots.prepare_store(frame.key, frame.parent_hash, retention, now) for frame in frames]
        places = [(slot, frame) for slot, frame in zip(taken, frames, strict=True) if slot is not None]
        written: set[int] = set()
        try:
            with anyio.CancelScope(shield=True):  # the threads read the frames
                entries = {slot: self._entry(slot, frame.key, frame.parent_hash) for slot, frame in places}
                written.update(
                    await to_thread.run_sync(self._files.write, self._runs(places), entries, limiter=self._writers)
                )
        finally:
            self._slots.complete_store([slot for slot, _ in places if slot in written])
            self._slots.abort_store([slot for slot, _ in places if slot not in written])
        return [
            slot in written or (slot is None and self._slots.lookup([frame.key]) == [Presence.HIT])
            for slot, frame in zip(taken, frames, strict=True)
        ]

    async def retain(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        """See `Tier.retain`; a restarted worker knows it, too."""
        slots = self._slots
        pinned = slots.prepare_load_any(keys)
        try:
            before = [slots.retention_at(slot) for slot in pinned]
            slots.retain(keys, retention, time.time())
            changed = [slot for slot, was in zip(pinned, before, strict=True) if slots.retention_at(slot) != was]
            entries = [(slot, self._entry(slot, slots.key_at(slot), slots.parent_at(slot))) for slot in changed]
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._files.note, entries, limiter=self._writers)
        finally:
            slots.complete_load(pinned)

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        """See `Tier.load`; a disk that hangs is waited for."""
        pinned = [next(iter(self._slots.prepare_load([frame.key])), None) for frame in frames]
        places = [(slot, frame) for slot, frame in zip(pinned, frames, strict=True) if slot is not None]
        try:
            with anyio.CancelScope(shield=True):  # the threads write into the frames
                read = await self._read(self._runs(places))
        finally:
            self._slots.complete_load([slot for slot, _ in places])
        return [slot in read for slot in pinned]

    async def _read(self, runs: Sequence[Run]) -> set[int]:
        """Read runs of frames, some at a time; return the slots for which that worked."""
        read: set[int] = set()

        async def haul(some: Sequence[Run]) -> None:
            read.update(await to_thread.run_sync(self._files.read, some, limiter=self._readers))

        size = max(1, min(MAX_HAUL, -(-len(runs) // NUM_READERS)))
        async with anyio.create_task_group() as tasks:
            for first in range(0, len(runs), size):
                tasks.start_soon(haul, runs[first : first + size])
        return read

    def _runs(self, places: Iterable[tuple[int, Frame]]) -> list[Run]:
        most = min(MAX_FRAMES, max(1, MAX_RUN_BYTES // self._files.stride))
        return _runs([(slot, frame.pages) for slot, frame in places], most)

    def _entry(self, slot: int, key: BlockKey, parent_hash: int) -> Entry:
        return Entry(key, parent_hash, self._slots.retention_at(slot), next(self._order))


class _Files(NamedTuple):
    """Open descriptors: frames, and the journal."""

    frames: int
    journal: int
    stride: int

    def write(self, runs: Sequence[Run], entries: Mapping[int, Entry]) -> list[int]:
        """Write runs of frames, then what is in their slots; return the slots but for runs that failed."""
        written = self._move(os.pwritev, runs)
        self.note([(slot, entries[slot]) for slot in written])
        return written

    def read(self, runs: Sequence[Run]) -> list[int]:
        """Read runs of frames; return the slots but for runs that failed."""
        return self._move(os.preadv, runs)

    def _move(self, call: Callable[[int, list[memoryview], int], int], runs: Sequence[Run]) -> list[int]:
        moved: list[int] = []
        for first, pages in runs:
            try:
                if call(self.frames, pages, first * self.stride) == len(pages) * self.stride:
                    moved += range(first, first + len(pages))
            except OSError as error:
                log.warning("disk.failed", call=call.__name__, reason=error.strerror)
        return moved

    def note(self, entries: Sequence[tuple[int, Entry]]) -> None:
        """Write down what is in slots. A failure costs what a restarted worker would have found."""
        try:
            for first, found in _runs(entries, len(entries)):
                os.pwrite(self.journal, b"".join(map(write_entry, found)), (first + 1) * ENTRY_BYTES)
        except OSError as error:
            log.warning("disk.journal_failed", reason=error.strerror)


@asynccontextmanager
async def open_disk(
    directory: Path, num_bytes: int, block_bytes: int, fingerprint: str, *, policy: str = "lru"
) -> AsyncIterator[DiskTier]:
    """Take a file of `num_bytes` in a directory, with what an earlier worker of this fingerprint left in it.

    Workers on one machine take one file each. Raises `BadConfig` when the directory cannot be used or the disk has no
    room for the file.
    """
    space, stride = space_of(fingerprint), stride_bytes(block_bytes)
    num_slots = num_bytes // stride
    if num_slots < 1:
        raise BadConfig(
            f"offload.disk_bytes = {num_bytes} holds no block of {stride} bytes: set more, or 0 for no disk"
        )
    with _open_files(directory, space, num_slots, stride) as files:
        journal = await to_thread.run_sync(_read_journal, files, write_superblock(space, num_slots, stride), num_slots)
        slots = Slots(num_slots, policy=policy, medium="disk", is_selective=True)
        found = await to_thread.run_sync(_restore, slots, journal)
        log.info("disk.opened", directory=str(directory), num_slots=num_slots, num_found=len(slots))
        yield DiskTier(slots, files, found)


def _restore(slots: Slots, journal: bytes) -> list[Entry]:
    """Put what a journal tells into the books; return it in the order of storing."""
    entries = sorted(read_entries(journal), key=lambda found: found[1].order)
    for slot, entry in entries:
        slots.restore(slot, entry.key, entry.parent_hash, entry.retention)
    slots.end_restore()
    return [entry for _, entry in entries]


def _read_journal(files: _Files, superblock: bytes, num_slots: int) -> bytes:
    """Return the journal of a file of this shape; one of another shape is begun anew."""
    size = (num_slots + 1) * ENTRY_BYTES
    journal = os.pread(files.journal, size, 0)
    while 0 < len(journal) < size and (more := os.pread(files.journal, size - len(journal), len(journal))):
        journal += more
    if journal[:ENTRY_BYTES] == superblock:
        return journal
    os.ftruncate(files.journal, 0)
    os.ftruncate(files.journal, size)
    os.pwrite(files.journal, superblock, 0)
    return b""


@contextmanager
def _open_files(directory: Path, space: Space, num_slots: int, stride: int) -> Iterator[_Files]:
    name = space.hex()[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(MAX_FILES):
            path = directory / f"{name}-{number}"
            journal = os.open(path.with_suffix(".journal"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(journal)
                continue
            break
        else:
            raise BadConfig(f"{MAX_FILES} workers use {directory} already: give this one another offload.disk_path")
    except OSError as error:
        raise BadConfig(f"offload.disk_path = {str(directory)!r} cannot be used: {error.strerror}") from error
    try:
        frames = _open_frames(path.with_suffix(".frames"), num_slots * stride)
        try:
            yield _Files(frames, journal, stride)
        finally:
            os.close(frames)
    finally:
        os.close(journal)


def _open_frames(path: Path, size: int) -> int:
    """Open a file for unbuffered I/O, where its file system can do that, and have the disk keep room for all of it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        frames = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError:
        frames = os.open(path, flags, 0o600)
        log.warning("disk.buffered", path=str(path), note="this file system has no unbuffered I/O")
    size_before = os.fstat(frames).st_size
    try:
        os.ftruncate(frames, size)
        os.posix_fallocate(frames, 0, size)
    except OSError as error:
        os.ftruncate(frames, size_before)  # a file system may keep what it gave before it was full
        os.close(frames)
        raise BadConfig(
            f"no room for offload.disk_bytes = {size} in {path.parent}: {error.strerror}; set less, or free some"
        ) from error
    return frames


def _runs(items: Iterable[tuple[int, T]], most: int) -> list[tuple[int, list[T]]]:
    """Join what belongs to slots that follow each other, up to `most`; return first slot and items of each run."""
    runs: list[tuple[int, list[T]]] = []
    start, run = 0, list[T]()
    for slot, item in sorted(items, key=itemgetter(0)):
        if not run or slot != start + len(run) or len(run) == most:
            start, run = slot, []
            runs.append((start, run))
        run.append(item)
    return runs
