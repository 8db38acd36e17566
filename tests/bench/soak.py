"""I/O. Half a load, and a fault by chance every few seconds, for minutes or hours: nothing is lost, and nothing kept.

A whole system with mock engines (`busway up`: broker, router, frontend, three workers) is disturbed as `busway chaos`
does it, and watched from outside: memory and file descriptors of each process, consumers at the broker, slots and KV
blocks of the workers. `python -m tests.bench.soak --minutes 60`; it ends by itself, and with 1 when anything is wrong.
What dies is started again from the files as they are then: run it in a checkout that nobody edits meanwhile.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import msgspec

from bus.config import Config
from bus.server import free_port
from components.bench.cpu import ProcessGone, read_usage
from components.chaos.ask import Target
from components.chaos.faults import choose_faults
from components.chaos.run import ChaosOptions, Report, render, run_chaos
from components.cli.terminal import find_broker
from components.supervisor.running import read_running
from tests.bench.processes import started, wait_for_model

MODEL = "soak"
WORKERS, SLOTS, STEP_S = 3, 16, 0.02
SAMPLE_S = 5.0
GROWTH, SLACK_BYTES = 1.10, 8 * 2**20
"""What a process may grow by between the second fifth of the run and the last: the allocator is never quite still."""
FD_SLACK = 2
SETTLED_S = 5.0
"""After which a system that serves has opened all that it opens."""
CONSUMERS_GONE_S = 90.0
"""Lanes of workers that were killed are forgotten by the broker after a minute."""


class Sample(msgspec.Struct, frozen=True):
    """One look at one process."""

    at: float
    name: str
    pid: int
    rss_bytes: int
    num_fds: int


def look(state_dir: Path) -> list[Sample]:
    """Look at each process that runs now."""
    running = read_running(state_dir)
    processes = [("supervisor", running.pid), *((p.name, p.pid) for p in running.processes)] if running else []
    samples = []
    for name, pid in processes:
        try:
            usage, num_fds = read_usage(pid), len(os.listdir(f"/proc/{pid}/fd"))
        except (ProcessGone, FileNotFoundError, ProcessLookupError):
            continue
        samples.append(Sample(time.monotonic(), name, pid, usage.rss_bytes, num_fds))
    return samples


def count_consumers(monitor_url: str) -> Counter[str]:
    """Return how many consumers the broker has, by stream."""
    with urllib.request.urlopen(f"{monitor_url}/jsz?streams=true", timeout=5) as answer:
        (account,) = json.load(answer)["account_details"]
    return Counter({each["name"]: each["state"]["consumer_count"] for each in account.get("stream_detail", [])})


def judge_memory(samples: Sequence[Sample], began_at: float, ended_at: float) -> list[str]:
    """Pure. Return a line for each part whose memory grew from the second fifth of the run to the last."""
    fifth = (ended_at - began_at) / 5
    wrong = []
    for name in dict.fromkeys(sample.name for sample in samples):
        early, late = [
            [
                s.rss_bytes
                for s in samples
                if s.name == name and began_at + n * fifth <= s.at < began_at + (n + 1) * fifth
            ]
            for n in (1, 4)
        ]
        if early and late and max(late) > GROWTH * max(early) + SLACK_BYTES:
            wrong.append(f"{name} grew from {max(early) / 1e6:.0f} to {max(late) / 1e6:.0f} MB")
    return wrong


def judge_fds(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Pure. Return a line for each part that has more file descriptors open than before."""
    return [
        f"{name} had {before[name]} file descriptors, now {num_fds}"
        for name, num_fds in after.items()
        if name in before and num_fds > before[name] + FD_SLACK
    ]


async def soak(config: Config, options: ChaosOptions, monitor_url: str) -> int:
    """Disturb and watch; return how many things are wrong."""
    state_dir = Path(config.state_dir)
    await anyio.sleep(SETTLED_S)
    before = {sample.name: sample.num_fds for sample in look(state_dir)}
    consumers = count_consumers(monitor_url)
    samples: list[Sample] = []
    reports: list[Report] = []
    began_at = time.monotonic()
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while True:
                samples.extend(look(state_dir))
                await anyio.sleep(SAMPLE_S)

        tasks.start_soon(watch)
        reports.append(await run_chaos(config, options, print))
        tasks.cancel_scope.cancel()
    ended_at = time.monotonic()
    report = reports[0]
    print("\n".join(render(report)))

    kept: Counter[str] = Counter()
    with anyio.move_on_after(CONSUMERS_GONE_S):
        while kept := count_consumers(monitor_url) - consumers:  # noqa: ASYNC110
            await anyio.sleep(1.0)
    after = look(state_dir)
    print(f"\n{'process':<14}{'MB before':>12}{'at most':>10}{'after':>8}{'fds before':>12}{'after':>8}{'lives':>8}")
    for last in after:
        mine = [sample for sample in samples if sample.name == last.name]
        first, most = mine[0].rss_bytes / 1e6, max(sample.rss_bytes for sample in mine) / 1e6
        fds = f"{before.get(last.name, 0):>12}{last.num_fds:>8}"
        lives = len({sample.pid for sample in mine})
        print(f"{last.name:<14}{first:>12.0f}{most:>10.0f}{last.rss_bytes / 1e6:>8.0f}{fds}{lives:>8}")
    print(f"consumers: {consumers.total()} before, {consumers.total() + kept.total()} after")

    wrong = judge_memory(samples, began_at, ended_at) + judge_fds(before, {s.name: s.num_fds for s in after})
    wrong += [f"{stream} has {count} consumers more than before" for stream, count in kept.items()]
    if not report.is_good:
        wrong.append("requests: see the verdict")
    minutes = (ended_at - began_at) / 60
    print(
        f"soak of {minutes:.0f} minutes: "
        + ("; ".join(wrong) if wrong else "nothing lost, nothing doubled, nothing kept")
    )
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds from the end of one fault to the next (5)")
    parser.add_argument(
        "--streams", type=int, default=WORKERS * SLOTS // 2, help="requests at a time (half of all slots)"
    )
    parser.add_argument("--fault", action="append", default=[], help="as `busway chaos --fault`; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        state_dir, log = Path(folder) / "state", Path(folder) / "up.log"
        settings = {
            "state_dir": state_dir,
            "frontend.port": port,
            "up.nats_port": free_port(),
            "up.workers": WORKERS,
            "up.routers": 1,
            "worker.engine": "mock",
            "worker.served_name": MODEL,
            "worker.slots": SLOTS,
            "worker.grace_s": 1.0,
            "mock.step_base_s": STEP_S,
            "mock.max_running": SLOTS,
        }
        command = [sys.executable, "-m", "components.cli", "up"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        with started(command, {**os.environ, "OMP_NUM_THREADS": "1"}, log) as up:
            wait_for_model(f"http://127.0.0.1:{port}", MODEL, log, [up])
            options = ChaosOptions(
                target=Target(host="127.0.0.1", port=port, model=MODEL),
                faults=tuple(choose_faults(args.fault, ["nats", "worker", "router", "frontend"])),
                duration_s=60 * args.minutes,
                every_s=args.every,
                streams=args.streams,
                seed=args.seed,
            )
            monitor_url = tomllib.loads((state_dir / "config.toml").read_text())["bus"]["monitor_url"]
            config = find_broker(Config(state_dir=str(state_dir)))
            num_wrong = 1
            try:
                num_wrong = anyio.run(soak, config, options, monitor_url, backend_options={"use_uvloop": True})
            finally:
                if num_wrong:
                    kept = tempfile.mkdtemp(prefix="soak-")
                    shutil.copytree(state_dir / "logs", kept, dirs_exist_ok=True)
                    print(f"the logs of all processes are in {kept}")
        print(f"restarts told by the supervisor: {log.read_text().count('starting it again')}")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
