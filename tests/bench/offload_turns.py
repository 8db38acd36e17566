"""Conversations whose KV blocks are ten times what the device holds: first tokens and reuse, with tiers and without.

What no tier can beat is measured beside: an engine whose device holds all of them, and computes only what is new. The
conversations are those of the Mooncake trace that have several turns, in the trace's order; each of its blocks of
512 tokens is one of 16 here. Each engine answers a stretch of requests in turn, one right after the other, so that what
tiers do behind a request is paid by those that follow; with `--stretch 1` it is waited for after each request, as where
requests leave pauses. `python -m tests.bench.offload_turns TRACE`, with OMP_NUM_THREADS=1.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from random import Random

import anyio
import msgspec

from bus.config import MockConfig
from components.replay.bound import find_bound
from components.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest
from components.worker.offload import TieredEngine
from offload.disk import open_disk
from offload.host import stride_bytes
from tests.bench.engine_torch import VOCAB, write_model
from tests.bench.offload_stage import (
    BLOCK_SIZE,
    Answer,
    Driven,
    drive,
    drive_tiered,
    make_engine,
    make_host,
    percentile,
    settle,
)

MIN_TURNS = 5
MAX_BLOCKS = 96
"""Of one prompt."""


def read_turns(path: Path, num_conversations: int) -> list[TraceRequest]:
    """Return the requests of the first conversations with several turns."""
    requests = [msgspec.json.decode(line, type=TraceRequest) for line in path.read_bytes().splitlines()]
    conversation_of: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        known = [conversation_of[block] for block in request.hash_ids[1:] if block in conversation_of]
        conversation = known[-1] if known else number
        members.setdefault(conversation, []).append(number)
        conversation_of.update(dict.fromkeys(request.hash_ids[1:], conversation))
    chosen = [
        numbers
        for numbers in members.values()
        if len(numbers) >= MIN_TURNS and max(len(requests[number].hash_ids) for number in numbers) <= MAX_BLOCKS
    ][:num_conversations]
    return [requests[number] for number in sorted(number for numbers in chosen for number in numbers)]


def prompt_of(request: TraceRequest) -> list[int]:
    """Return token ids that stand for the trace's blocks: equal ids, equal tokens."""
    tokens: list[int] = []
    for block in request.hash_ids:
        rng = Random(block)
        tokens += [rng.randrange(2, VOCAB) for _ in range(BLOCK_SIZE)]
    return [*tokens, 1]


async def warm_up(driven: Driven) -> None:
    rng = Random(0)
    for length in (32, 600, 64, 400, 32, 900, 128, 300):
        await driven.ask([rng.randrange(2, VOCAB) for _ in range(length)])


async def measure(trace: Path, num_conversations: int, host_part: float, disk_part: float, stretch: int) -> None:
    requests = read_turns(trace, num_conversations)
    prompts = [prompt_of(request) for request in requests]
    working_set = len({block for request in requests for block in request.hash_ids})
    num_blocks = max(MAX_BLOCKS + 2, working_set // 10)
    num_tokens = sum(map(len, prompts))
    print(
        f"{len(requests)} requests, {num_tokens} tokens; {working_set} blocks, of which the device holds {num_blocks}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_model(directory)
        engine = make_engine(directory, num_blocks)
        memory = engine.memory
        host_blocks, disk_blocks = int(host_part * working_set), int(disk_part * working_set)
        disk_bytes = disk_blocks * stride_bytes(memory.block_bytes)
        off: list[Answer] = []
        on: list[Answer] = []
        best: list[Answer] = []
        async with (
            drive(make_engine(directory, num_blocks)) as plain,
            drive(make_engine(directory, working_set + MAX_BLOCKS)) as whole,
            open_disk(directory / "tier", disk_bytes, memory.block_bytes, memory.fingerprint) as disk,
            drive_tiered(engine, make_host(engine, host_blocks), disk) as (tiered, mover, gate),
        ):
            assert isinstance(tiered.engine, TieredEngine)
            sides = [(plain, off), (tiered, on), (whole, best)]
            for driven, _ in sides:
                await warm_up(driven)
            for first in range(0, len(prompts), stretch):  # in turn, so that what else the machine does hits all
                for driven, answers in sides:
                    answers += [await driven.ask(prompt) for prompt in prompts[first : first + stretch]]
                    await settle(tiered.engine, mover)
            print(f"gate: {gate.prefill_s[0] * 1e6:.0f} us a token; copy {gate.rate(None)}, disk {gate.rate('disk')} s")
    assert [a.tokens for a in on] == [a.tokens for a in off] == [a.tokens for a in best], "tokens differ"
    print(f"tokens are equal; host memory for {host_blocks} blocks, disk for {disk_blocks}")
    for what, part in (("ttft_s", 0.5), ("ttft_s", 0.9), ("cpu_s", 0.5)):
        off_s, on_s, best_s = (percentile([getattr(answer, what) for answer in each], part) for each in (off, on, best))
        print(
            f"{'CPU until then' if what == 'cpu_s' else 'TTFT'} p{part * 100:.0f}: "
            f"off {off_s * 1e3:.1f} ms, on {on_s * 1e3:.1f} ms: {off_s / on_s:.2f}x; "
            f"a device that holds all {best_s * 1e3:.1f} ms: {off_s / best_s:.2f}x"
        )
    capacity = MockConfig(num_blocks=max(host_blocks, disk_blocks), block_size=TRACE_BLOCK_TOKENS)
    counted = [
        msgspec.structs.replace(each, input_length=len(each.hash_ids) * TRACE_BLOCK_TOKENS + 1) for each in requests
    ]
    bound = find_bound(counted, capacity, 1)
    total = sum(len(request.hash_ids) * BLOCK_SIZE for request in requests)
    for name, answers in (("off", off), ("on", on), ("by a device that holds all", best)):
        reuse = sum(answer.cached_tokens for answer in answers) / total
        print(f"reuse {name}: {reuse:.3f} = {reuse / bound.clairvoyant:.3f} of the clairvoyant {bound.clairvoyant:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--conversations", type=int, default=30)
    parser.add_argument("--host-part", type=float, default=0.5, help="of the working set")
    parser.add_argument("--disk-part", type=float, default=0.8)
    parser.add_argument("--stretch", type=int, default=32, help="requests that an engine answers at a time")
    arguments = parser.parse_args()
    parts = arguments.host_part, arguments.disk_part
    work = partial(measure, arguments.trace, arguments.conversations, *parts, arguments.stretch)
    anyio.run(work, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
