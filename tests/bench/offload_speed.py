"""How fast blocks move to host memory and disk and back, beside what memory and disk themselves give.

`python -m tests.bench.offload_speed`. Host memory stands beside one memcpy of the same bytes, the disk tier beside
threads, as many as it has, that read or write its file past the page cache as fast as they can. Each pair takes turns;
prints the medians and the median ratio of neighbours. To hold: 0.8 of memcpy, 0.9 of the disk.
"""

import argparse
import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import anyio
from anyio import CapacityLimiter, to_thread

from offload.behind import BATCH
from offload.disk import NUM_THREADS, open_disk
from offload.host import HostArena, stride_bytes
from offload.key import BlockKey, is_sound, space_of
from offload.tier import ORDINARY, Frame

SPACE = space_of("bench")
RUN_BYTES = 4 * 2**20
"""Of one call of the plain reader: long enough that calls cost nothing."""
SPAN_BYTES = 256 * 2**20
"""Moved in each round: more than any cache has."""

Work = Callable[[], Awaitable[object]]


async def compare(
    title: str, ours: Work, plain: Work, num_bytes: int, rounds: int, *, prepare: Work | None = None
) -> None:
    rates: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for side, work in enumerate((ours, plain)) if number % 2 else reversed([*enumerate((ours, plain))]):
            if prepare is not None:
                await prepare()
            started_at = time.perf_counter()
            await work()
            rates[side].append(num_bytes / (time.perf_counter() - started_at) / 1e9)
    ours_gbs, plain_gbs = (each[1:] for each in rates)  # the first ones warm up
    ratio = median([a / b for a, b in zip(ours_gbs, plain_gbs, strict=True)])
    print(f"{title}: {median(ours_gbs):.2f} GB/s, plain {median(plain_gbs):.2f} GB/s = {ratio:.2f}", flush=True)


async def measure_host(block_bytes: int, rounds: int) -> None:
    """Copy blocks of a device, scattered over it, to slots, and back."""
    num_blocks = SPAN_BYTES // block_bytes
    device = mmap.mmap(-1, num_blocks * block_bytes)
    other = mmap.mmap(-1, num_blocks * block_bytes)
    for memory in (device, other):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.write(b"\1" * len(memory))
    address, target = (ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (device, other))
    host = HostArena(num_blocks * stride_bytes(block_bytes), block_bytes)
    slots = list(range(num_blocks))
    addresses = [address + number * 7919 % num_blocks * block_bytes for number in range(num_blocks)]

    async def copy() -> None:
        await to_thread.run_sync(ctypes.memmove, target, address, len(device))

    for title, move in (("in", host.read_in), ("out", host.write_out)):
        work = partial(to_thread.run_sync, move, slots, addresses)
        await compare(f"host memory {title}, {block_bytes >> 10} KiB", work, copy, len(device), rounds)


def frames_of(host: HostArena, num_blocks: int) -> list[Frame]:
    """Return sealed frames in a host memory."""
    keys = [BlockKey(SPACE, (number + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1) for number in range(num_blocks)]
    slots = [host.slots.prepare_store(key, 0, ORDINARY, 0.0) for key in keys]
    return host.seal([slot for slot in slots if slot is not None])


async def measure_disk(directory: Path, block_bytes: int, rounds: int) -> None:
    stride = stride_bytes(block_bytes)
    num_blocks = SPAN_BYTES // stride
    size = num_blocks * stride
    host = HostArena(size, block_bytes)
    frames = frames_of(host, num_blocks)
    limiter = CapacityLimiter(NUM_THREADS)
    parts = [(start, host.buffer[start : start + RUN_BYTES]) for start in range(0, size, RUN_BYTES)]

    async def plain(call: Callable[[int, list[memoryview], int], int], file: int) -> None:
        async with anyio.create_task_group() as tasks:
            for start, part in parts:
                tasks.start_soon(partial(to_thread.run_sync, call, file, [part], start, limiter=limiter))

    async with open_disk(directory, size, block_bytes, "bench") as disk:
        file = os.open(directory / "plain", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(file, 0, size)
        kib = block_bytes >> 10
        store = partial(disk.store, frames, ORDINARY)
        forget = partial(disk.remove, [frame.key for frame in frames])
        write = partial(plain, os.pwritev, file)
        await compare(f"disk store, {kib} KiB", store, write, size, rounds, prepare=forget)

        async def store_in_batches() -> None:
            for first in range(0, num_blocks, BATCH):
                await disk.store(frames[first : first + BATCH], ORDINARY)

        title = f"disk store, {kib} KiB, {BATCH} at a time as a worker does"
        await compare(title, store_in_batches, write, size, rounds, prepare=forget)
        await disk.store(frames, ORDINARY)
        load = partial(disk.load, frames)
        await compare(f"disk load, {kib} KiB", load, partial(plain, os.preadv, file), size, rounds)
        assert all(await disk.load(frames))
        assert all(is_sound(frame.view, frame.key) for frame in frames)
        os.close(file)


async def measure(block_sizes: Sequence[int], rounds: int, directory: Path) -> None:
    for kib in block_sizes:
        await measure_host(kib << 10, rounds)
    for kib in block_sizes:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            await measure_disk(Path(scratch), kib << 10, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block-kib", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is measured")
    arguments = parser.parse_args()
    anyio.run(measure, arguments.block_kib, arguments.rounds, arguments.directory, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
