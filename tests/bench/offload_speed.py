"""How fast blocks move to host memory and disk and back, beside what memory and disk themselves give.

`python -m tests.bench.offload_speed`. Host memory stands beside one memcpy of the same bytes. The disk tier stands
beside as many threads that read or write a file past the page cache as fast as they can, in calls of 4 MiB,
and for comparison of 1 MiB and of a block; stores go through the queue that a worker has for them, with checksums made
before and, as in a worker, meanwhile. All take turns; prints the medians, the median ratio of neighbours, and the
milliseconds of CPU of a round, of which the event loop's. To hold: 0.8 of memcpy, 0.9 of the disk.

With `--gpu`, only host memory below a GPU instead, beside one copy of the same bytes to page-locked memory: as yet run
by nobody.
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
from typing import NamedTuple

import anyio
from anyio import CapacityLimiter, to_thread

from bus.lifecycle import spare_living
from offload.behind import WriteBehind
from offload.disk import NUM_READERS, open_disk
from offload.host import HostArena, stride_bytes
from offload.key import UNSEALED, BlockKey, is_sound, space_of
from offload.tier import ORDINARY

SPACE = space_of("bench")
SPAN_BYTES = 256 * 2**20
"""Moved in each round: more than any cache has."""

Work = Callable[[], Awaitable[object]]


class Round(NamedTuple):
    wall_s: float
    cpu_s: float
    loop_s: float


async def compare(works: dict[str, Work], num_bytes: int, rounds: int, *, prepare: Work | None = None) -> None:
    """Let all take turns; the last one is what the others are measured by."""
    taken: dict[str, list[Round]] = {title: [] for title in works}
    for number in range(rounds + 1):
        for title, work in works.items() if number % 2 else reversed(works.items()):
            if prepare is not None:
                await prepare()
            started = Round(time.perf_counter(), time.process_time(), time.thread_time())
            await work()
            ended = Round(time.perf_counter(), time.process_time(), time.thread_time())
            if number:  # the first ones warm up
                taken[title].append(Round(*[b - a for a, b in zip(started, ended, strict=True)]))
    plain = [*taken.values()][-1]
    for title, ours in taken.items():
        wall_s, cpu_s, loop_s = (median(column) for column in zip(*ours, strict=True))
        ratio = median([b.wall_s / a.wall_s for a, b in zip(ours, plain, strict=True)])
        cpu = f"CPU {cpu_s * 1e3:.1f} ({loop_s * 1e3:.1f}) ms"
        print(f"{title}: {num_bytes / wall_s / 1e9:.2f} GB/s = {ratio:.2f}, {cpu}", flush=True)


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

    moves = {"in": host.read_in, "out": host.write_out}
    works: dict[str, Work] = {
        f"host memory {title}, {block_bytes >> 10} KiB": partial(to_thread.run_sync, move, slots, addresses)
        for title, move in moves.items()
    }
    await compare({**works, "memcpy": copy}, len(device), rounds)


async def measure_gpu(block_bytes: int, rounds: int) -> None:
    """Copy blocks of a GPU, scattered over it, to slots, and back."""
    import torch

    from components.engines.torch.copier import open_copier

    num_blocks = SPAN_BYTES // block_bytes
    blocks = torch.ones((num_blocks, block_bytes), dtype=torch.uint8, device="cuda")
    other = torch.empty_like(blocks, device="cpu", pin_memory=True)
    host = HostArena(num_blocks * stride_bytes(block_bytes), block_bytes)
    slots = list(range(num_blocks))
    addresses = [blocks.data_ptr() + number * 7919 % num_blocks * block_bytes for number in range(num_blocks)]
    async with open_copier(blocks, host.payloads) as host.copier:
        works: dict[str, Work] = {
            f"host memory {title}, GPU, {block_bytes >> 10} KiB": partial(to_thread.run_sync, move, slots, addresses)
            for title, move in {"in": host.read_in, "out": host.write_out}.items()
        }
        plain = partial(to_thread.run_sync, other.copy_, blocks)
        await compare({**works, "one copy": plain}, blocks.nbytes, rounds)


def fill(host: HostArena, num_blocks: int) -> list[BlockKey]:
    """Put blocks into a host memory."""
    keys = [BlockKey(SPACE, (number + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1) for number in range(num_blocks)]
    slots = [host.slots.prepare_store(key, 0, ORDINARY, 0.0) for key in keys]
    host.slots.complete_store([slot for slot in slots if slot is not None])
    return keys


async def measure_disk(directory: Path, block_bytes: int, rounds: int) -> None:
    stride = stride_bytes(block_bytes)
    num_blocks = SPAN_BYTES // stride
    size = num_blocks * stride
    host = HostArena(size, block_bytes)
    keys = fill(host, num_blocks)
    frames = [host.frame(slot) for slot in range(num_blocks)]
    limiter = CapacityLimiter(NUM_READERS)
    title = f"{block_bytes >> 10} KiB"

    async def plain(call: Callable[[int, list[memoryview], int], int], file: int, part_bytes: int) -> None:
        def move(first: int) -> None:
            for start in range(first, size, NUM_READERS * part_bytes):
                call(file, [host.buffer[start : start + part_bytes]], start)

        async with anyio.create_task_group() as tasks:
            for number in range(NUM_READERS):
                tasks.start_soon(partial(to_thread.run_sync, move, number * part_bytes, limiter=limiter))

    spare_living()  # as a worker does
    async with open_disk(directory, size, block_bytes, "bench") as disk, anyio.create_task_group() as tasks:
        file = os.open(directory / "plain", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(file, 0, size)
        behind = WriteBehind(disk, host)
        tasks.start_soon(behind.run)

        async def store(*, is_sealed: bool) -> None:
            if not is_sealed:
                for frame in frames:
                    frame.view[0] = UNSEALED
            behind.offer(keys, ORDINARY)
            await behind.wait_idle()

        async def forget() -> None:
            await disk.remove(keys)
            disk.take_events()

        def plainly(call: Callable[[int, list[memoryview], int], int], what: str) -> dict[str, Work]:
            sizes = {f"{what} in calls of {title}": stride, "of 1 MiB": 2**20, "of 4 MiB": 2**22}
            return {name: partial(plain, call, file, part_bytes) for name, part_bytes in sizes.items()}

        stores: dict[str, Work] = {
            f"disk store, {title}, checksums made before": partial(store, is_sealed=True),
            f"disk store, {title}": partial(store, is_sealed=False),
        }
        await compare(stores | plainly(os.pwritev, "plain writes"), size, rounds, prepare=forget)
        await store(is_sealed=True)
        loads: dict[str, Work] = {f"disk load, {title}": partial(disk.load, frames)}
        await compare(loads | plainly(os.preadv, "plain reads"), size, rounds)
        assert all(await disk.load(frames))
        assert all(is_sound(frame.view, frame.key) for frame in frames)
        os.close(file)
        tasks.cancel_scope.cancel()


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
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.gpu:
        for kib in arguments.block_kib:
            anyio.run(measure_gpu, kib << 10, arguments.rounds, backend_options={"use_uvloop": True})
        return
    anyio.run(measure, arguments.block_kib, arguments.rounds, arguments.directory, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
