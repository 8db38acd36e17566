"""The disk tier: what was stored outlives the worker; full disks and broken bytes are misses."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from bus.errors import BadConfig
from bus.messages.kv import BlocksStored
from offload.disk import DiskTier, open_disk
from offload.host import HostArena, stride_bytes
from offload.journal import ENTRY_BYTES
from offload.key import HEADER_BYTES, UNSEALED, BlockKey, is_sound, space_of
from offload.slots import _FILLING
from offload.tier import ORDINARY, Frame, Presence, Retention

pytestmark = pytest.mark.anyio

BLOCK_BYTES = 10_000
STRIDE = stride_bytes(BLOCK_BYTES)
SPACE = space_of("model")


def open_slots(directory: Path, num_slots: int = 32, fingerprint: str = "model") -> Any:
    return open_disk(directory, num_slots * STRIDE, BLOCK_BYTES, fingerprint)


def only(directory: Path, pattern: str) -> Path:
    [path] = directory.glob(pattern)
    return path


class Memory:
    """Frames in page-aligned memory."""

    def __init__(self) -> None:
        self._arena = HostArena(200 * STRIDE, BLOCK_BYTES)

    def empty(self, *numbers: int) -> list[Frame]:
        """Return frames of garbage under these hashes."""
        slots = self._arena.slots
        taken = [slots.prepare_store(BlockKey(SPACE, number), number - 1, ORDINARY, 0.0) for number in numbers]
        frames = [self._arena.frame(slot) for slot in taken if slot is not None]
        for frame in frames:
            frame.pages[:] = b"\xaa" * len(frame.pages)
        slots.abort_store([slot for slot in taken if slot is not None])
        return frames

    def filled(self, *numbers: int) -> list[Frame]:
        """Return frames with these blocks in them."""
        frames = self.empty(*numbers)
        for frame in frames:
            frame.view[0] = UNSEALED
            frame.view[HEADER_BYTES:] = frame.key.block_hash.to_bytes(8, "little") * (BLOCK_BYTES // 8)
        return frames


async def sound(disk: DiskTier, memory: Memory, *numbers: int) -> list[int]:
    """Load these blocks; return those that came, whole."""
    frames = memory.empty(*numbers)
    came = await disk.load(frames)
    return [
        frame.key.block_hash
        for frame, is_here in zip(frames, came, strict=True)
        if is_here and is_sound(frame.view, frame.key)
    ]


async def test_what_was_stored_is_loaded_and_found_again_by_the_next_worker(tmp_path: Path) -> None:
    memory = Memory()
    async with open_slots(tmp_path) as disk:
        assert await disk.store(memory.filled(*range(1, 21)), Retention(3, 5e9)) == [True] * 20
        assert await sound(disk, memory, *range(1, 21)) == list(range(1, 21))
        assert await sound(disk, memory, 99) == []
    async with open_slots(tmp_path) as disk:
        [event] = disk.take_events()
        assert isinstance(event, BlocksStored)
        assert (event.parent_hash, len(event.block_hashes)) == (0, 160)
        assert await sound(disk, memory, *range(1, 21)) == list(range(1, 21))
        assert disk._slots.retention_at(0) == Retention(3, 5e9)
        assert await disk.store(memory.filled(*range(100, 113)), ORDINARY) == [True] * 13


async def test_a_pin_that_comes_later_keeps_blocks_through_restarts_and_hours_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, now = Memory(), 1e9
    monkeypatch.setattr("time.time", lambda: now)
    keys = [BlockKey(SPACE, number) for number in (1, 2, 3)]
    async with open_slots(tmp_path) as disk:
        await disk.store(memory.filled(1, 2, 3), ORDINARY)
        await disk.retain(keys, Retention(0, now + 8 * 3600))
    for hour in range(12):
        now = 1e9 + 3600 * hour + 60
        async with open_slots(tmp_path) as disk:
            await disk.store(memory.filled(*range(100 * (hour + 1), 100 * (hour + 1) + 40)), ORDINARY)
            assert (await sound(disk, memory, 1, 2, 3) == [1, 2, 3]) == (hour < 8)


async def test_nothing_of_another_model_or_shape_is_found(tmp_path: Path) -> None:
    memory = Memory()
    async with open_slots(tmp_path) as disk:
        await disk.store(memory.filled(1, 2, 3), ORDINARY)
    async with open_slots(tmp_path, fingerprint="another model") as disk:
        assert len(disk._slots) == 0
    async with open_slots(tmp_path, num_slots=16) as disk:
        assert len(disk._slots) == 0
    async with open_slots(tmp_path) as disk:
        assert len(disk._slots) == 0


async def test_workers_of_one_machine_have_files_of_their_own(tmp_path: Path) -> None:
    memory = Memory()
    async with open_slots(tmp_path) as one, open_slots(tmp_path) as other:
        await one.store(memory.filled(1), ORDINARY)
        await other.store(memory.filled(2), ORDINARY)
        assert other.lookup([BlockKey(SPACE, 1), BlockKey(SPACE, 2)]) == [Presence.MISS, Presence.HIT]
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("at", [0, 10, HEADER_BYTES, HEADER_BYTES + BLOCK_BYTES - 1])
async def test_a_flipped_bit_on_the_disk_is_found(tmp_path: Path, at: int) -> None:
    memory = Memory()
    async with open_slots(tmp_path) as disk:
        await disk.store(memory.filled(1, 2, 3), ORDINARY)
    path = only(tmp_path, "*.frames")
    data = bytearray(path.read_bytes())
    data[STRIDE + at] ^= 1
    path.write_bytes(data)
    async with open_slots(tmp_path) as disk:
        assert await sound(disk, memory, 1, 2, 3) == [1, 3]
        await disk.remove([BlockKey(SPACE, 2)])
        assert disk.lookup([BlockKey(SPACE, 2)]) == [Presence.MISS]


@pytest.mark.parametrize("left", [0, 1, ENTRY_BYTES - 1, ENTRY_BYTES, 3 * ENTRY_BYTES + 5])
async def test_a_journal_that_was_cut_or_overwritten_loses_blocks_and_invents_none(tmp_path: Path, left: int) -> None:
    memory = Memory()
    async with open_slots(tmp_path) as disk:
        await disk.store(memory.filled(1, 2, 3, 4), ORDINARY)
    path = only(tmp_path, "*.journal")
    journal = path.read_bytes()
    path.write_bytes(journal[:left] + b"\x5a" * (len(journal) - left))
    async with open_slots(tmp_path) as disk:
        known = max(0, left // ENTRY_BYTES - 1)
        assert await sound(disk, memory, 1, 2, 3, 4) == [1, 2, 3, 4][:known]


async def test_an_entry_of_a_frame_that_was_overwritten_since_is_a_miss(tmp_path: Path) -> None:
    """A worker was killed between a frame and its entry."""
    memory = Memory()
    async with open_slots(tmp_path, num_slots=2) as disk:
        await disk.store(memory.filled(1, 2), ORDINARY)
        path = only(tmp_path, "*.journal")
        before = path.read_bytes()
        for _ in range(2):
            await disk.store(memory.filled(7), ORDINARY)
        assert await sound(disk, memory, 7) == [7]
    path.write_bytes(before)
    async with open_slots(tmp_path, num_slots=2) as disk:
        assert disk.lookup([BlockKey(SPACE, 1), BlockKey(SPACE, 2)]) == [Presence.HIT] * 2
        assert len(await sound(disk, memory, 1, 2)) == 1


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """Let every write beyond a position in a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_a_full_disk_does_not_take_is_not_there(tmp_path: Path) -> None:
    memory = Memory()
    async with open_slots(tmp_path) as disk:
        with full_disk(10 * STRIDE):
            for number in range(1, 21):
                stored = await disk.store(memory.filled(number), ORDINARY)
                assert stored == [number <= 10]
        assert await sound(disk, memory, *range(1, 21)) == list(range(1, 11))
        assert await disk.store(memory.filled(*range(11, 21)), ORDINARY) == [True] * 10
        assert await sound(disk, memory, *range(1, 21)) == list(range(1, 21))


async def test_no_room_for_the_file_is_told_at_the_start(tmp_path: Path) -> None:
    with full_disk(10 * STRIDE), pytest.raises(BadConfig, match="no room for offload"):
        async with open_slots(tmp_path):
            pass


async def test_a_file_for_which_there_is_no_room_leaves_the_disk_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, allocate = Memory(), os.posix_fallocate

    def allocate_until_full(file: int, offset: int, size: int) -> None:
        allocate(file, offset, size // 2)  # as ext4 does
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with open_slots(tmp_path) as disk:
        await disk.store(memory.filled(1, 2), ORDINARY)
    frames = only(tmp_path, "*.frames")
    taken = frames.stat().st_blocks
    monkeypatch.setattr(os, "posix_fallocate", allocate_until_full)
    with pytest.raises(BadConfig, match="no room for offload"):
        async with open_slots(tmp_path, num_slots=3200):
            pass
    monkeypatch.undo()
    assert frames.stat().st_blocks == taken
    async with open_slots(tmp_path) as disk:
        assert await sound(disk, memory, 1, 2) == [1, 2], "what was there before is still found"


async def test_a_path_that_is_no_directory_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadConfig, match="cannot be used"):
        async with open_slots(tmp_path / "file"):
            pass


async def test_more_than_the_disk_holds_goes_through_it(tmp_path: Path) -> None:
    memory, seen = Memory(), list[int]()
    async with open_slots(tmp_path, num_slots=8) as disk:
        for number in range(1, 100):
            if all(await disk.store(memory.filled(number), ORDINARY)):
                seen.append(number)
        assert await sound(disk, memory, *seen[-8:]) == seen[-8:]


async def test_a_store_or_load_that_is_cancelled_at_any_time_ends_whole(tmp_path: Path) -> None:
    memory = Memory()
    async with open_slots(tmp_path, num_slots=64) as disk:
        for turn in range(20):
            numbers = range(100 * turn + 1, 100 * turn + 25)
            frames = memory.filled(*numbers)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(disk.store, frames, ORDINARY)
                for _ in range(turn):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert _FILLING not in disk._slots._states
            assert await sound(disk, memory, *numbers) in ([], list(numbers))
            frames = memory.empty(*numbers)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(disk.load, frames)
                for _ in range(turn):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert not any(disk._slots._pins)
            for frame in frames:
                assert is_sound(frame.view, frame.key) or bytes(frame.view) == b"\xaa" * len(frame.view)
