"""Blocks get into host memory and back as they were: by memcpy, as tensors, and from a GPU where there is one."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

import anyio
import pytest
import torch
from anyio import to_thread
from structlog.testing import capture_logs

from bus.errors import EngineDied
from components.engines.torch import copier as module
from components.engines.torch.copier import DeviceCopier, Lane, lock_pages, open_copier
from offload.copier import Copier, Payloads
from offload.host import HostArena, stride_bytes
from offload.key import HEADER_BYTES

pytestmark = pytest.mark.anyio

NUM_BLOCKS = 24
NUM_SLOTS = 40
SHAPE = (2, 2, 16, 2, 8)
PART_BLOCKS = 3


class Marks:
    """Events of a lane that has no device behind it: how many were recorded, and up to which one somebody waited."""

    def __init__(self, error: str = "") -> None:
        self.num_recorded = self.num_awaited = self.most_open = 0
        self._error = error

    def make_event(self) -> Any:
        marks = self

        class Event(torch.cpu.Event):
            def record(self, stream: Any = None) -> None:
                marks.num_recorded += 1
                marks.most_open = max(marks.most_open, marks.num_recorded - marks.num_awaited)
                self.number = marks.num_recorded

            def synchronize(self) -> None:
                marks.num_awaited = max(marks.num_awaited, self.number)
                if marks._error:
                    raise RuntimeError(marks._error)

        return Event()


def plain_lane(make_event: Any = torch.cpu.Event) -> Lane:
    """Return what torch has for code that runs on a CPU as well: there, a copy has been made when it was begun."""
    return Lane(torch.cpu.Stream(), torch.cpu.stream, make_event)


class Stage(NamedTuple):
    blocks: torch.Tensor
    host: HostArena
    copier: Copier

    def addresses(self, blocks: Sequence[int]) -> list[int]:
        return [self.blocks.data_ptr() + block * self.host.block_bytes for block in blocks]

    def payload(self, slot: int) -> bytes:
        start = slot * stride_bytes(self.host.block_bytes) + HEADER_BYTES
        return bytes(self.host.buffer[start : start + self.host.block_bytes])

    def contents(self) -> list[bytes]:
        """Return what is in each block of the engine."""
        rows = self.blocks.view(NUM_BLOCKS, -1).view(torch.uint8).cpu()
        return [row.numpy().tobytes() for row in rows]


def make_stage(device: str = "cpu") -> tuple[torch.Tensor, HostArena]:
    generator = torch.Generator().manual_seed(7)
    blocks = torch.randn((NUM_BLOCKS, *SHAPE), generator=generator).to(device, torch.bfloat16)
    return blocks, HostArena(NUM_SLOTS * stride_bytes(blocks[0].nbytes), blocks[0].nbytes)


@pytest.fixture(params=["memcpy", "tensors", "gpu"])
async def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    blocks, host = make_stage("cuda" if request.param == "gpu" else "cpu")
    monkeypatch.setattr(module, "PART_BYTES", PART_BLOCKS * host.block_bytes)
    if request.param == "memcpy":
        yield Stage(blocks, host, host.copier)
    elif request.param == "tensors":
        yield Stage(blocks, host, DeviceCopier(blocks, host.payloads, inward=plain_lane(), outward=plain_lane()))
    else:
        async with open_copier(blocks, host.payloads) as copier:
            assert torch.frombuffer(host.buffer, dtype=torch.uint8).is_pinned()
            yield Stage(blocks, host, copier)


@pytest.mark.parametrize("count", [1, PART_BLOCKS, NUM_BLOCKS // 2])
async def test_blocks_come_back_as_they_were_and_nothing_else_is_touched(stage: Stage, count: int) -> None:
    rng, before = Random(count), stage.contents()
    stage.host.buffer[:] = bytes([0xA5]) * len(stage.host.buffer)
    numbers = rng.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    sources, targets, slots = numbers[:count], numbers[count : 2 * count], rng.sample(range(NUM_SLOTS), count)
    expected = bytearray(stage.host.buffer)
    for block, slot in zip(sources, slots, strict=True):
        start = slot * stride_bytes(stage.host.block_bytes) + HEADER_BYTES
        expected[start : start + stage.host.block_bytes] = before[block]

    stage.copier.read_in(slots, stage.addresses(sources))
    assert stage.host.buffer == expected
    stage.copier.write_out(slots, stage.addresses(targets))
    assert stage.host.buffer == expected
    for source, target in zip(sources, targets, strict=True):
        before[target] = before[source]
    assert stage.contents() == before


async def test_copies_both_ways_at_a_time_do_not_meet(stage: Stage) -> None:
    half, before = NUM_BLOCKS // 2, stage.contents()
    stage.copier.read_in(range(half), stage.addresses(range(half)))
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            out = partial(stage.copier.write_out, range(half), stage.addresses(range(half, 2 * half)))
            into = partial(stage.copier.read_in, range(half, 2 * half), stage.addresses(range(half)))
            tasks.start_soon(to_thread.run_sync, out)
            tasks.start_soon(to_thread.run_sync, into)
    assert stage.contents() == before[:half] * 2
    assert [stage.payload(slot) for slot in range(2 * half)] == before[:half] * 2


@pytest.mark.parametrize("count", [1, PART_BLOCKS, NUM_BLOCKS])
def test_no_more_than_two_parts_are_under_way_and_none_when_a_copy_returns(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, host = make_stage()
    monkeypatch.setattr(module, "PART_BYTES", PART_BLOCKS * host.block_bytes)
    marks = Marks()
    copier = DeviceCopier(blocks, host.payloads, inward=plain_lane(marks.make_event), outward=plain_lane())
    addresses = [blocks.data_ptr() + block * host.block_bytes for block in range(count)]
    copier.read_in(range(count), addresses)
    assert marks.num_recorded >= -(-count // PART_BLOCKS)
    assert marks.most_open <= 2
    assert marks.num_awaited == marks.num_recorded


def test_whoever_asks_wrongly_is_told_when_nothing_is_under_way_any_more() -> None:
    blocks, host = make_stage()
    marks = Marks()
    copier = DeviceCopier(blocks, host.payloads, inward=plain_lane(marks.make_event), outward=plain_lane())
    with pytest.raises(IndexError):
        copier.read_in([0, NUM_SLOTS], [blocks.data_ptr()] * 2)
    assert (marks.num_recorded, marks.num_awaited) == (1, 1)


def test_without_its_device_the_engine_is_dead() -> None:
    blocks, host = make_stage()
    lane = plain_lane(Marks("CUDA error: unspecified launch failure").make_event)
    copier = DeviceCopier(blocks, host.payloads, inward=lane, outward=lane)
    with pytest.raises(EngineDied, match="unspecified launch failure"):
        copier.write_out([0], [blocks.data_ptr()])


class Locks:
    """A system that page-locks so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.parts: list[tuple[int, int]] = []
        self._num_bytes = num_bytes

    def register(self, address: int, num_bytes: int) -> int:
        if num_bytes + sum(size for _, size in self.parts) > self._num_bytes:
            return 2
        self.parts.append((address, num_bytes))
        return 0


def test_pages_are_locked_in_parts_of_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, host = make_stage()
    payloads, locks, locked = host.payloads, Locks(2**40), list[int]()
    monkeypatch.setattr(module, "LOCK_BYTES", 7 * payloads.stride + 1)
    lock_pages(payloads, locked, locks.register)
    sizes = [7 * payloads.stride] * 5 + [5 * payloads.stride]
    assert locks.parts == [(payloads.address + sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    assert locked == [address for address, _ in locks.parts]


def test_what_cannot_be_locked_is_told_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _, host = make_stage()
    payloads, locked = host.payloads, list[int]()
    monkeypatch.setattr(module, "LOCK_BYTES", 10 * payloads.stride)
    with capture_logs() as logs:
        lock_pages(payloads, locked, Locks(25 * payloads.stride).register)
    assert locked == [payloads.address, payloads.address + 10 * payloads.stride]
    [told] = logs
    assert (told["event"], told["locked_bytes"]) == ("host_memory.not_locked", 20 * payloads.stride)


def test_a_block_larger_than_a_part_is_locked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    _, host = make_stage()
    payloads, locks = Payloads(*host.payloads), Locks(2**40)
    monkeypatch.setattr(module, "LOCK_BYTES", 1)
    lock_pages(payloads, [], locks.register)
    assert {size for _, size in locks.parts} == {payloads.stride}
