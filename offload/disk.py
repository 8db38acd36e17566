"""I/O. The tier on a local disk: one file of slots, read and written past the page cache, that outlives the worker.

Unbuffered I/O takes no memory from the engine and no second copy; several threads keep the device busy.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio
import structlog
from anyio import to_thread

from bus.errors import BadConfig
from bus.messages.kv import KvEvent
from bus.metrics import OFFLOAD_BLOCKS, OFFLOAD_HELD_BLOCKS
from offload.host import stride_bytes
from offload.journal import ENTRY_BYTES, Entry, read_entries, write_entry, write_superblock
from offload.key import BlockKey, Space, space_of
from offload.slots import Slots
from offload.tier import Frame, Medium, Presence, Retention

NUM_READERS = 4
NUM_WRITERS = 4
"""Threads. Readers never wait for writers; some make checksums while others write.

A store gives them two hauls at least: with as many stores under way as threads, there is always one that is ready.
"""
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
U = TypeVar("U")
Run = tuple[int, list[T]]
"""A slot, and what belongs into it and those behind it."""
Stored = tuple[Frame, Entry]

log = structlog.get_logger()
_held = OFFLOAD_HELD_BLOCKS.labels("disk")
_evicted = OFFLOAD_BLOCKS.labels("disk", "evicted")


class DiskTier:
    """Frames in a file, by slot. Made by `open_disk`."""

    name = "disk"
    medium: Medium = "disk"
    owner = ""

    def __init__(
        self,
        slots: Slots,
        files: "_Files",
        found: Sequence[Entry],
        readers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
    ) -> None:
        """`found` is what an earlier worker left in the slots, oldest first."""
        self.newest = [(entry.key, entry.parent_hash) for entry in found[-NUM_NEWEST:]]
        """Blocks that were here at the start, and the hashes of those before them: something to measure with."""
        self._slots = slots
        self._files = files
        self._order = count(found[-1].order + 1 if found else 0)
        self._most = min(MAX_FRAMES, max(1, MAX_RUN_BYTES // files.stride))
        self._readers = readers
        self._writers = writers

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
        """See `Tier.store`; a disk that hangs is waited for."""
        now = time.time()
        taken = [self._slots.prepare_store(frame.key, frame.parent_hash, retention, now) for frame in frames]
        places = [(slot, frame) for slot, frame in zip(taken, frames, strict=True) if slot is not None]
        written: set[int] = set()
        try:
            stored = [(slot, (frame, self._entry(slot, frame.key, frame.parent_hash))) for slot, frame in places]
            size = max(1, min(self._most, -(-len(stored) // 2)))
            hauls = [_runs(part, size) for part in _cut(stored, size)]
            with anyio.CancelScope(shield=True):  # the threads read the frames
                written = await _in_threads(self._writers, self._files.write, hauls)
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
                await _in_threads(self._writers, self._files.note, [_runs(entries, MAX_FRAMES)])
        finally:
            slots.complete_load(pinned)

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        """See `Tier.load`; a disk that hangs is waited for."""
        pinned = [next(iter(self._slots.prepare_load([frame.key])), None) for frame in frames]
        places = [(slot, frame) for slot, frame in zip(pinned, frames, strict=True) if slot is not None]
        try:
            runs = _runs(places, self._most)
            hauls = _cut(runs, max(1, min(MAX_HAUL, -(-len(runs) // NUM_READERS))))
            with anyio.CancelScope(shield=True):  # the threads write into the frames
                read = await _in_threads(self._readers, self._files.read, hauls)
        finally:
            self._slots.complete_load([slot for slot, _ in places])
        return [slot in read for slot in pinned]

    def _entry(self, slot: int, key: BlockKey, parent_hash: int) -> Entry:
        return Entry(key, parent_hash, self._slots.retention_at(slot), next(self._order))


class _Files(NamedTuple):
    """Open descriptors: frames, and the journal."""

    frames: int
    journal: int
    stride: int

    def write(self, runs: Sequence[Run[Stored]]) -> list[int]:
        """Seal and write runs of frames, then what is in their slots; return the slots but for runs that failed."""
        written: list[Run[Entry]] = []
        for first, stored in runs:
            for frame, _ in stored:
                frame.seal()
            if self._move(os.pwritev, first, [frame.pages for frame, _ in stored]):
                written.append((first, [entry for _, entry in stored]))
        return self.note(written)

    def read(self, runs: Sequence[Run[Frame]]) -> list[int]:
        """Read runs of frames; return the slots but for runs that failed."""
        read = [run for run in runs if self._move(os.preadv, run[0], [frame.pages for frame in run[1]])]
        return [slot for first, frames in read for slot in range(first, first + len(frames))]

    def _move(self, call: Callable[[int, list[memoryview], int], int], first: int, pages: list[memoryview]) -> bool:
        try:
            return call(self.frames, pages, first * self.stride) == len(pages) * self.stride
        except OSError as error:
            log.warning("disk.failed", call=call.__name__, reason=error.strerror)
            return False

    def note(self, runs: Sequence[Run[Entry]]) -> list[int]:
        """Write down what is in slots, and return these. A failure costs what a restarted worker would have found."""
        try:
            for first, entries in runs:
                os.pwrite(self.journal, b"".join(map(write_entry, entries)), (first + 1) * ENTRY_BYTES)
        except OSError as error:
            log.warning("disk.journal_failed", reason=error.strerror)
        return [slot for first, entries in runs for slot in range(first, first + len(entries))]


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
    with (
        _open_files(directory, space, num_slots, stride) as files,
        ThreadPoolExecutor(NUM_READERS, "disk-read") as readers,
        ThreadPoolExecutor(NUM_WRITERS, "disk-write") as writers,
    ):
        journal = await to_thread.run_sync(_read_journal, files, write_superblock(space, num_slots, stride), num_slots)
        slots = Slots(num_slots, policy=policy, medium="disk", is_selective=True)
        found = await to_thread.run_sync(_restore, slots, journal)
        log.info("disk.opened", directory=str(directory), num_slots=num_slots, num_found=len(slots))
        yield DiskTier(slots, files, found, readers, writers)


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


async def _in_threads(
    threads: ThreadPoolExecutor, move: Callable[[Sequence[Run[T]]], list[int]], hauls: Sequence[Sequence[Run[T]]]
) -> set[int]:
    """Have threads move runs, each one haul at a time; return the slots for which that worked.

    A thread that is done takes the next haul by itself: no turn of the event loop is between two calls.
    """
    loop = asyncio.get_running_loop()
    moving = [loop.run_in_executor(threads, move, runs) for runs in hauls]
    if moving:
        await asyncio.wait(moving)
    return {slot for future in moving for slot in future.result()}


def _cut(items: Sequence[U], most: int) -> list[Sequence[U]]:
    return [items[first : first + most] for first in range(0, len(items), most)]


def _runs(items: Iterable[tuple[int, T]], most: int) -> list[Run[T]]:
    """Join what belongs to slots that follow each other, up to `most`; return first slot and items of each run."""
    runs: list[tuple[int, list[T]]] = []
    start, run = 0, list[T]()
    for slot, item in sorted(items, key=itemgetter(0)):
        if not run or slot != start + len(run) or len(run) == most:
            start, run = slot, []
            runs.append((start, run))
        run.append(item)
    return runs
