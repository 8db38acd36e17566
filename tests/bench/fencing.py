"""What a token pays for nothing being lost: CPU of a whole system with detection, fencing and bookkeeping, and without.

Two systems stand side by side (broker, frontend, one worker with the mock engine); one runs with `unfenced/` on its
path, which replaces the parts in question in its processes: no attempt, worker or offset is checked, no batch is kept
to be sent again, no heartbeat goes out, nobody looks for silence, deadlines or stuck engines. Both get the same load
at the same time, so that whatever else the machine does disturbs both alike; CPU per token is that of all three
processes. `python -m tests.bench.fencing`.
"""

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anyio

from components.bench.generator import run_load_process
from components.bench.results import LoadOptions
from tests.bench.systems import PACED, UNPACED
from tests.faults.system import MODEL, ROOT, System

UNFENCED = {"PYTHONPATH": f"{Path(__file__).with_name('unfenced')}:{ROOT}"}
PROCESSES = ("nats", "worker-0", "frontend-0")


async def start(folder: Path, environment: dict[str, str], settings: tuple[str, ...]) -> System:
    """Start one of the two."""
    system = System(folder, dict(setting.partition("=")[::2] for setting in settings))
    await system.start_nats()
    for name in PROCESSES[1:]:
        system.start(name, environment=environment)
    await system.wait_ready(1)
    return system


def cpu_us(system: System) -> float:
    """Return the CPU time of the system's processes until now: of all their threads, as the scheduler counts it."""
    tasks = [task for name in PROCESSES for task in Path(f"/proc/{system.processes[name].pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


def measure(system: System, *, streams: int, seconds: float, seed: int) -> float:
    """Load the system; return the CPU time of its processes in microseconds a token."""
    options = LoadOptions(
        url=f"http://127.0.0.1:{system.target().port}",
        model=MODEL,
        streams=streams,
        duration_s=seconds,
        max_tokens=256,
        prompt_words=32,
        seed=seed,
    )
    before_us = cpu_us(system)
    load = run_load_process(options)
    if load.num_failed:
        raise SystemExit(f"{load.num_failed} requests failed, the first one: {load.first_failure}")
    return (cpu_us(system) - before_us) / load.num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32, help="of each system (32)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round (3)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds (12)")
    args = parser.parse_args()
    for pace in (PACED, UNPACED):
        with tempfile.TemporaryDirectory() as folder:
            both: list[System] = []
            try:
                for name, environment in (("with", {}), ("without", UNFENCED)):
                    mine = Path(folder) / name
                    mine.mkdir()
                    both.append(anyio.run(start, mine, environment, pace.busway_settings))
                with ThreadPoolExecutor(len(both)) as threads:
                    turns = [
                        list(threads.map(partial(measure, streams=args.streams, seconds=args.seconds, seed=seed), both))
                        for seed in range(args.rounds + 1)
                    ][1:]
            finally:
                for system in both:
                    system.close()
        fenced, bare = (statistics.median(values) for values in zip(*turns, strict=True))
        more = statistics.median(one / other - 1 for one, other in turns)
        print(
            f"{pace.name}, {args.streams} streams: {fenced:.1f} us a token with, {bare:.1f} without: {more:+.1%} "
            f"(median of {args.rounds} pairs, from {min(a / b - 1 for a, b in turns):+.1%} "
            f"to {max(a / b - 1 for a, b in turns):+.1%})"
        )


if __name__ == "__main__":
    sys.exit(main())
