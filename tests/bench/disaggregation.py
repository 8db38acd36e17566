"""I/O. Prefill and decode in workers of their own, at length: `python -m tests.bench.disaggregation PART`.

`equal`: token ids, log-probabilities and endings for prompts of 1 to 8,000 tokens, those of workers that do all beside
those of one that prefills and one that decodes (PyTorch engine, float32), and what the handover costs a client.
`kills`: workers are killed at ten points of the flow in turn, under load. `switches`: roles change under load.
Each ends with what was seen, and with exit code 1 where that is not as it should be.
"""

import argparse
import itertools
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import anyio
import openai

from bus.config import BusConfig
from bus.connection import open_bus
from bus.subjects import Subjects
from components.chaos.history import check
from components.chaos.load import Load, running_load
from components.chaos.slots import find_leaks
from tests.faults.flow import POINTS, SWITCHES, Flow, open_flow
from tests.faults.system import System
from tests.same_text import KINDS, Said, ask_each, open_client

STREAMS = 12
BLOCK = 16
BORDERS = sorted({max(1, 16 * blocks + more) for blocks in (0, 1, 2, 15, 16, 64, 127, 128, 129) for more in (-1, 0, 1)})
LONG = (3000, 4095, 4096, 4097, 6000, 7999, 8000)
TORCH = {
    "worker.engine": "torch",
    "worker.served_name": "busway-tiny",
    "worker.dtype": "float32",
    "worker.transfer": "auto",
    "router.disaggregate": "always",
}


async def equal() -> bool:
    """Compare the answers, then time the way of one long prompt."""
    cases = [(kind, length) for kind in KINDS for length in (*BORDERS, *LONG)]
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder), TORCH)
        try:
            await system.start_nats()
            async with open_bus(BusConfig(url=system.server.url), Subjects(), name="watcher") as bus:
                flow = Flow(system, bus)
                system.start("worker-0", settings={"worker.roles": ["prefill"]})
                system.start("worker-1", settings={"worker.roles": ["decode"]})
                for name in ("router-0", "frontend-0"):
                    system.start(name)
                await system.wait_ready(2)
                target = system.target()
                url = f"http://{target.host}:{target.port}"
                async with open_client(url) as client:
                    apart = await ask_each(client, cases, salt="apart", at_once=4)
                    decode = next(name for name, number in flow.workers().items() if number == 1)
                    computed = _metric(url, "busway_worker_prefill_tokens_total", decode)
                    fetched = _metric(url, "busway_transfer_blocks_total", decode)
                    waits = [await _time_tokens(client, 3000, f"apart-{number}") for number in range(5)]
                    for worker in flow.workers():
                        await flow.set_roles(worker, ["both"])
                    together = await ask_each(client, cases, salt="together", at_once=4)
                    alone = [await _time_tokens(client, 3000, f"together-{number}") for number in range(5)]
        finally:
            system.close()
    unlike = [case for case in cases if not apart[case].is_like(together[case])]
    tails = sum(length % BLOCK for _, length in cases)
    offered = sum(length // BLOCK for _, length in cases)
    print(f"{len(cases)} requests of {', '.join(KINDS)}: {len(unlike)} differ {_show(unlike, apart, together)}")
    print(
        f"{offered} full blocks of prompts: the decode worker read {fetched:.0f} (some early, and again) and computed "
        f"{computed:.0f} prompt tokens; {tails} were in no full block, and {len(cases)} first tokens go on there"
    )
    prefill_ms = 1000 * statistics.median(first for first, _ in alone)
    handover_ms = 1000 * statistics.median(second for _, second in waits)
    step_ms = 1000 * statistics.median(second for _, second in alone)
    print(
        f"3,000 tokens: prefilled in {prefill_ms:.0f} ms; from the first token to the second {handover_ms:.1f} ms over "
        f"the handover, {step_ms:.1f} ms without one: {(handover_ms - step_ms) / prefill_ms:.3f} of the prefill"
    )
    return not unlike and computed <= tails + len(cases)


async def kills(count: int, seed: int) -> bool:
    """Kill one worker after the other, each at the next point of the flow."""
    hit: Counter[str] = Counter()

    async def disturb(flow: Flow) -> None:
        for point in itertools.islice(itertools.cycle(POINTS), count):
            await flow.kill_at(point)
            hit[point.name] += 1

    is_good = await _under_load(disturb, seed)
    for name, times in hit.items():
        print(f"  {times:>3} x {name}")
    return is_good


async def switches(count: int, seed: int) -> bool:
    """Change roles, one worker after the other."""
    dice, times = Random(seed), list[float]()

    async def disturb(flow: Flow) -> None:
        for _ in range(count):
            times.append(await flow.set_roles(dice.choice(sorted(flow.workers())), dice.choice(SWITCHES)))
            await anyio.sleep(dice.uniform(0.0, 0.1))

    is_good = await _under_load(disturb, seed)
    print(f"{len(times)} changes of roles, median {1000 * statistics.median(times):.0f} ms, longest {max(times):.2f} s")
    return is_good


async def _under_load(disturb: Callable[[Flow], Awaitable[None]], seed: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        async with open_flow(Path(folder)) as flow:
            questions = await flow.questions(2000, seed)
            async with running_load(flow.system.target(), questions, STREAMS) as load:
                await disturb(flow)
            ended_at = time.monotonic()
            held = await find_leaks(flow.system.config)
            return _report(load, time.monotonic() - ended_at, held)


def _report(load: Load, idle_s: float, held: object) -> bool:
    verdict = check(load.answers)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in verdict.counts.items())
    print(
        f"{len(load.answers)} answers: {counts}; longest standstill {verdict.longest_gap_s:.2f} s {verdict.first_bad}"
    )
    print(f"{held or 'all blocks returned'} within {idle_s:.1f} s of the last answer")
    return verdict.is_good and not verdict.counts["refused"] and not held  # type: ignore[index]


async def _time_tokens(client: openai.AsyncOpenAI, length: int, salt: str) -> tuple[float, float]:
    """Return the seconds to the first token, and from there to the second."""
    prompt = Random(salt).choices(range(300, 1500), k=length)
    began_at = time.perf_counter()
    options = {"model": "busway-tiny", "max_tokens": 2, "temperature": 0.0, "stream": True}
    stream = await client.completions.create(prompt=prompt, extra_body={"ignore_eos": True}, **options)  # type: ignore[call-overload]
    at = [time.perf_counter() async for chunk in stream if chunk.choices and chunk.choices[0].text]
    return at[0] - began_at, at[-1] - at[0]


def _metric(url: str, line_start: str, worker: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics/fleet", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(line_start) and f'"{worker}"' in line)


def _show(
    unlike: list[tuple[str, int]], apart: dict[tuple[str, int], Said], together: dict[tuple[str, int], Said]
) -> str:
    return f"first {unlike[0]}: {apart[unlike[0]]} and {together[unlike[0]]}" if unlike else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("equal", "kills", "switches"))
    parser.add_argument("--count", type=int, default=0, help="of kills (100) or changes of roles (200)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.part == "equal":
        went_well = anyio.run(equal)
    elif given.part == "kills":
        went_well = anyio.run(kills, given.count or 100, given.seed)
    else:
        went_well = anyio.run(switches, given.count or 200, given.seed)
    raise SystemExit(0 if went_well else 1)
