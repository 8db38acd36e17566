"""Time to the first token with a tier, over that without, for prompts of all lengths: never slower than off.

Each prompt was computed before and has left the device, and host memory too unless that is the tier. Tiers are host
memory, the disk, Redis, the S3 stub and another worker's host memory, as they are and made to take 0.1 s or 1 s more,
or to answer nothing for 5 s and then to fail. The engine with the tier and one without are asked in turn, with all that
the one before left behind written on first. Prints for each tier and length both medians, the median ratio of what was
asked together, that of the quickest of each, that of the CPU time of all threads, each with the interval in which it
lies at 95 %, and CPU milliseconds of the event loop; at last which ratios of time are shown to be at most 1.05, which
to be above, and which are neither. On a machine with other work `taskset -c 1 python -m tests.bench.offload_gate`, with
OMP_NUM_THREADS=1: on several cores, the engine whose thread shares one with others is slower.
"""

# ruff: noqa: ASYNC110 - the engines tell nobody what is awaited here

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import anyio

from components.engines.batching.pool import BlockPool
from components.engines.mock.engine import MockEngine
from components.engines.torch.driver import TorchDriver
from components.worker.offload import TieredEngine
from offload.host import HostArena
from offload.mover import Mover
from offload.tier import Tier
from tests.bench.engine_torch import VOCAB, write_model
from tests.bench.offload_stage import (
    BLOCK_SIZE,
    Answer,
    Driven,
    drive,
    drive_tiered,
    make_engine,
    make_host,
    make_mock,
    percentile,
    settle,
)
from tests.bench.offload_tiers import TIERS, open_tier, slow_down

BAR = 1.05
LEARN_S = 8.0
"""For probes of a slow tier, of which the first come one after the other."""
MIN_PAIRS = 5
REST_S = 0.01

Engine = TorchDriver | MockEngine


def make_prompt(length: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


class Side:
    """An engine, driven, whose device can be emptied."""

    def __init__(self, driven: Driven, engine: Engine) -> None:
        self.ask = driven.ask
        self._driven = driven
        self._engine = engine

    async def empty(self) -> None:
        """Let all blocks leave the device; who looks after them was told when this returns."""
        engine = self._engine
        if isinstance(engine, TorchDriver):
            engine._call(partial(_evict, engine._engine.pool))
            with anyio.fail_after(5.0):
                while not engine._events:
                    await anyio.sleep(0.001)
        else:
            _evict(engine._pool)
        self._driven.engine.take_events()


def _evict(pool: BlockPool) -> None:
    pool.discard(pool.allocate(pool.num_available))


class Bench(NamedTuple):
    """What the measurements of one tier share."""

    plain: Side
    tiered: Side
    engine: TieredEngine
    host: HostArena
    mover: Mover
    tiers: list[Tier]

    async def leave(self) -> None:
        """Empty both devices, and host memory above a tier."""
        await settle(self.engine, self.mover)
        await self.plain.empty()
        await self.tiered.empty()
        slots = self.host.slots
        if self.tiers:
            slots.remove([slots.key_at(slot) for slot in range(slots.num_slots)])
        self.engine.take_events()

    async def prepare(self, prompts: Sequence[Sequence[int]]) -> None:
        """Have prompts computed and written on, and the tier measured with them for a while."""
        for prompt in prompts:
            await self.plain.ask(prompt, 1)
            await self.tiered.ask(prompt, 1)
            await self.leave()
        until = time.monotonic() + LEARN_S
        is_known = 0
        while is_known < 3 and time.monotonic() < until:
            for prompt in prompts:
                await self.tiered.ask(prompt, 1)
                await self.plain.ask(prompt[: BLOCK_SIZE + 1], 1)
                await self.leave()
            is_known += len(self.mover.rates()) > len(self.tiers)

    async def compare(self, prompts: Sequence[Sequence[int]], seconds: float) -> tuple[list[Answer], list[Answer]]:
        """Ask both sides in turn, for so long and a few times at least; return the answers without and with tiers."""
        off: list[Answer] = []
        on: list[Answer] = []
        until = time.monotonic() + seconds
        while len(off) < MIN_PAIRS or time.monotonic() < until:
            number = len(off)
            sides = [(self.plain, off), (self.tiered, on)]
            for side, answers in sides if number % 4 < 2 else reversed(sides):
                await settle(self.engine, self.mover)
                await anyio.sleep(REST_S)  # both come out of the same rest: whoever is asked second is not warmer
                answers.append(await side.ask(prompts[number % 2], 1))
            await self.leave()
        assert all(a.tokens == b.tokens for a, b in zip(on, off, strict=True)), "tokens differ"
        return off, on


class Ratio(NamedTuple):
    """A median, and the interval in which that of all measurements lies at 95 %, by ranks."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio_of(on: Sequence[float], off: Sequence[float]) -> Ratio:
    """Compare what was measured together."""
    ratios = sorted([a / b for a, b in zip(on, off, strict=True)])
    middle, reach = len(ratios) / 2, 0.98 * len(ratios) ** 0.5
    low, high = ratios[max(0, int(middle - reach))], ratios[min(len(ratios) - 1, int(middle + reach))]
    return Ratio(percentile(ratios, 0.5), low, high)


def report(title: str, off: list[Answer], on: list[Answer]) -> Ratio:
    """Print a line; return the ratio of time."""
    off_s, on_s = ([answer.ttft_s for answer in each] for each in (off, on))
    ratio = ratio_of(on_s, off_s)
    cpu = ratio_of([answer.cpu_s for answer in on], [answer.cpu_s for answer in off])
    loop_off_s, loop_on_s = (percentile([answer.loop_s for answer in each], 0.5) for each in (off, on))
    loaded = percentile([answer.cached_tokens for answer in on], 0.5)
    print(
        f"{title}: off {percentile(off_s, 0.5) * 1e3:8.2f} ms, on {percentile(on_s, 0.5) * 1e3:8.2f} ms = {ratio}, "
        f"least {min(on_s) / min(off_s):.3f}, CPU {cpu}, event loop {loop_off_s * 1e3:.2f} and {loop_on_s * 1e3:.2f}; "
        f"{loaded:.0f} loaded, {len(on)} pairs",
        flush=True,
    )
    return ratio


async def measure_tier(
    make: Callable[[int], Engine], directory: Path, name: str, delay_s: float, *, lengths: Sequence[int], seconds: float
) -> dict[str, Ratio]:
    """Measure one tier at all lengths; return the ratios of time by title."""
    num_blocks = max(40, -(-max(lengths) // BLOCK_SIZE) + 4)
    engines = [make(num_blocks) for _ in range(2)]
    host = make_host(engines[1], 4 * num_blocks)
    ratios: dict[str, Ratio] = {}
    async with (
        drive(engines[0]) as plain,
        open_tier(name, directory / f"{name}-{delay_s}", host, engines[1].memory.fingerprint) as tiers,
        drive_tiered(engines[1], host, *tiers) as (tiered, mover, _),
    ):
        sides = [Side(plain, engines[0]), Side(tiered, engines[1])]
        assert isinstance(tiered.engine, TieredEngine)
        bench = Bench(sides[0], sides[1], tiered.engine, host, mover, tiers)
        if delay_s:
            slow_down(tiers[0], delay_s)
        await bench.prepare([make_prompt(size, size) for size in (16, 128, 512, 64, 400)])
        for length in lengths:
            prompts = [make_prompt(length, 2 * length + number) for number in range(2)]
            await bench.prepare(prompts)
            title = f"{name:>5} {f'{delay_s:g} s late' if delay_s else '':>10} {length:>5} tokens"
            ratios[title] = report(title, *await bench.compare(prompts, seconds))
        if tiers and not delay_s:
            slow_down(tiers[0], float("inf"))
            on, off = await sides[1].ask(prompts[0], 1), await sides[0].ask(prompts[0], 1)
            print(f"{name:>5} as it dies {length:>5} tokens: {on.ttft_s / off.ttft_s:.3f}", flush=True)
    return ratios


async def measure(
    engine: str, lengths: Sequence[int], names: Sequence[str], delays: Sequence[float], seconds: float
) -> None:
    ratios: dict[str, Ratio] = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_model(directory)
        make = make_mock if engine == "mock" else partial(make_engine, directory)
        for name in names:
            for delay_s in delays if name != "host" else [0.0]:
                ratios |= await measure_tier(make, directory, name, delay_s, lengths=lengths, seconds=seconds)
    above = [title for title, ratio in ratios.items() if ratio.low > BAR]
    unsure = [title for title, ratio in ratios.items() if ratio.low <= BAR < ratio.high]
    print(f"at most {BAR} for sure: {len(ratios) - len(above) - len(unsure)} of {len(ratios)}")
    print(f"above it for sure: {'; '.join(above) or 'none'}")
    print(f"more pairs, or a quieter machine, would tell: {'; '.join(unsure) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="torch", choices=("torch", "mock"), help="mock: as fast as an H100")
    parser.add_argument("--lengths", type=int, nargs="+", default=[17, 33, 65, 129, 257, 513, 1025, 2049, 4097, 8000])
    parser.add_argument("--tiers", nargs="+", default=TIERS, choices=TIERS)
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.1, 1.0, float("inf")], help="seconds")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each tier, delay and length, at least")
    arguments = parser.parse_args()
    work = partial(measure, arguments.engine, arguments.lengths, arguments.tiers, arguments.delays, arguments.seconds)
    anyio.run(work, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
