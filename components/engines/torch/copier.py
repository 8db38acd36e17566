"""I/O (memory). Copies blocks between a GPU and host memory, beside what the engine computes there.

What orders the copies is that this process waits: the engine's stream is drained before a block is named to others
(`TorchEngine.take_notes`), and a copy has ended before the engine hears of it. So no stream waits for another one.

A thread that calls CUDA names its GPU first: otherwise that is the first one, where it takes some 0.5 GB for nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import anyio
import structlog
import torch
from anyio import to_thread
from torch import Tensor

from bus.errors import EngineDied
from offload.copier import Payloads

PART_BYTES = 8 * 2**20
"""Begun at a time, while as much is under way: what the engine itself has to copy, such as the tokens of a step, waits
for no more than that. The priority of a stream does not help: by CUDA's documentation it counts for kernels only."""
LOCK_BYTES = 64 * 2**30
"""Page-locked by one call: CUDA refuses 512 GiB (seen by vLLM: its pull request 51081)."""

Register = Callable[[int, int], int]
"""Page-locks so many bytes from an address on; returns 0 or CUDA's number of an error."""

log = structlog.get_logger()


class Lane(NamedTuple):
    """A stream in which copies of one direction follow each other, and what torch has to use it."""

    stream: Any
    enter: Callable[[Any], AbstractContextManager[object]]
    make_event: Callable[[], Any]

    def mark(self) -> Any:
        """Return an event that comes when all that was begun so far is done."""
        event = self.make_event()
        event.record(self.stream)
        return event


class DeviceCopier:
    """Implements `offload.copier.Copier`. Bytes go by the GPU's copy engines; threads that wait for them sleep."""

    inline_bytes = 0

    def __init__(self, blocks: Tensor, payloads: Payloads, *, inward: Lane, outward: Lane) -> None:
        """`blocks` are the rows of `KvCache.blocks`; into host memory is inward."""
        self._address = blocks.data_ptr()
        self._block_bytes = payloads.block_bytes
        self._blocks = blocks.view(len(blocks), -1).view(torch.uint8)
        pages = torch.frombuffer(payloads.buffer, dtype=torch.uint8).view(-1, payloads.stride)
        self._slots = pages[:, payloads.first : payloads.first + payloads.block_bytes]
        self._inward = inward
        self._outward = outward

    def read_in(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """See `Copier`."""
        self._copy(self._inward, self._slots, slots, self._blocks, self._numbers(addresses))

    def write_out(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """See `Copier`."""
        self._copy(self._outward, self._blocks, self._numbers(addresses), self._slots, slots)

    def _numbers(self, addresses: Sequence[int]) -> list[int]:
        return [(address - self._address) // self._block_bytes for address in addresses]

    def _copy(self, lane: Lane, targets: Tensor, to: Sequence[int], sources: Tensor, of: Sequence[int]) -> None:
        size = max(1, PART_BYTES // self._block_bytes)
        try:
            with lane.enter(lane.stream):
                try:
                    before = None
                    for first in range(0, len(to), size):
                        for target, source in zip(to[first : first + size], of[first : first + size], strict=True):
                            targets[target].copy_(sources[source], non_blocking=True)
                        begun = lane.mark()
                        if before is not None:
                            before.synchronize()
                        before = begun
                finally:
                    lane.mark().synchronize()
        except RuntimeError as error:
            raise EngineDied(f"KV blocks cannot be copied to or from the GPU: {error}") from error


@asynccontextmanager
async def open_copier(blocks: Tensor, payloads: Payloads) -> AsyncIterator[DeviceCopier]:
    """Copy blocks of a GPU while the context is open; host memory is page-locked that long, all of it at once.

    That takes time (0.1 s for each GB, as vLLM measured). Where the system does not allow it, copies are slower.
    """
    locked: list[int] = []
    try:
        # What fails here leaves an error with its thread, for which torch would blame the next kernel it starts there:
        # this thread starts none.
        with ThreadPoolExecutor(1, thread_name_prefix="page-lock") as thread:
            lock = partial(lock_pages, payloads, locked, partial(_register, blocks.device))
            with anyio.CancelScope(shield=True):
                await asyncio.get_running_loop().run_in_executor(thread, lock)
        yield DeviceCopier(blocks, payloads, inward=_make_lane(blocks.device), outward=_make_lane(blocks.device))
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(_unlock_pages, blocks.device, locked)


def _make_lane(device: torch.device) -> Lane:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return Lane(stream, _on_stream, partial(torch.cuda.Event, blocking=True))


@contextmanager
def _on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield


def lock_pages(payloads: Payloads, locked: list[int], register: Register) -> None:
    """Page-lock host memory, and note where each part of it begins; what cannot be locked is left as it is.

    No block lies in two parts: CUDA may refuse to copy one that does.
    """
    size = max(1, LOCK_BYTES // payloads.stride) * payloads.stride
    for start in range(0, len(payloads.buffer), size):
        failure = register(payloads.address + start, min(size, len(payloads.buffer) - start))
        if failure:
            log.warning(
                "host_memory.not_locked",
                reason=f"CUDA error {failure}: blocks take longer to and from the GPU; set less offload.host_bytes",
                locked_bytes=start,
                host_bytes=len(payloads.buffer),
            )
            return
        locked.append(payloads.address + start)


def _register(device: torch.device, address: int, num_bytes: int) -> int:
    with torch.cuda.device(device):
        return int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0))  # type: ignore[no-untyped-call]


def _unlock_pages(device: torch.device, locked: list[int]) -> None:
    with torch.cuda.device(device):
        for address in locked:
            failure = int(torch.cuda.cudart().cudaHostUnregister(address))  # type: ignore[no-untyped-call]
            if failure:
                log.warning("host_memory.not_unlocked", reason=f"CUDA error {failure}")
