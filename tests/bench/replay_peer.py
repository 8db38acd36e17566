"""I/O. Replay a trace with Dynamo's offline replay and with Busway's: `python -m tests.bench.replay_peer TRACE`.

Both simulate the same engines (Dynamo's mocker with its default timing polynomials, 16,384 blocks of 64 tokens); each
runs in a process of its own. Dynamo breaks ties by chance: its kv figures move by 3 % from run to run.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from components.replay.bound import Bound
from components.replay.report import Latency, Report
from tests.bench.dynamo import install_dynamo

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 3600.0
ROW = "{:<26}{:>9}{:>11}{:>10}{:>10}{:>10}{:>10}{:>10}{:>9}"


class Line(msgspec.Struct, frozen=True):
    """What is compared, in seconds."""

    name: str
    reuse: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    itl_mean_s: float
    duration_s: float
    wall_s: float


def write(line: str) -> None:
    print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="Mooncake trace, JSON lines")
    parser.add_argument("--venv", type=Path, default=ROOT / ".bench" / "dynamo-venv", help="where Dynamo is installed")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--limit", type=int, help="the first requests only")
    parser.add_argument("--load", type=float, default=1.0, help="arrivals so many times denser")
    parser.add_argument("--policy", nargs="+", default=["round_robin", "kv"], help="Busway's policies")
    parser.add_argument("--set", action="append", default=[], help="settings of Busway, as in router.temperature_s=0.1")
    return parser.parse_args()


def run_dynamo(python: Path, trace: Path, num_workers: int) -> list[Line]:
    """Run Dynamo's modes one after the other."""
    script = Path(__file__).with_name("replay_dynamo.py")
    started_at = time.perf_counter()
    # -P: the folder of the script holds a `dynamo` of its own.
    command: list[str | Path] = [python, "-P", script, trace, str(num_workers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S).stdout
    reports: Mapping[str, Mapping[str, float]] = json.loads(output.splitlines()[-1])
    wall_s = (time.perf_counter() - started_at) / len(reports)
    return [_dynamo_line(f"Dynamo {mode}", report, wall_s) for mode, report in reports.items()]


def run_busway(trace: Path, policy: str, options: argparse.Namespace) -> tuple[Line, Bound]:
    """Run one policy of ours; a failed request fails the comparison. Return what the trace allows at best, too."""
    settings = [word for setting in options.set for word in ("--set", setting)]
    command = ["replay", str(trace), "--policy", policy, "--workers", str(options.workers), "--json", *settings]
    started_at = time.perf_counter()
    output = subprocess.run(
        [sys.executable, "-m", "components.cli", *command],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
    ).stdout
    answer: dict[str, Any] = msgspec.json.decode(output)
    report = msgspec.convert(answer["report"], Report)
    line = Line(
        f"Busway {policy}",
        report.reuse,
        report.ttft.mean_s,
        report.ttft.p50_s,
        report.ttft.p90_s,
        report.ttft.p99_s,
        report.itl.mean_s,
        report.duration_s,
        time.perf_counter() - started_at,
    )
    return line, msgspec.convert(answer["bound"], Bound)


def cut(trace: Path, limit: int | None, load: float, folder: Path) -> Path:
    """Return a file with the first `limit` lines of the trace, `load` times as dense."""
    if limit is None and load == 1.0:
        return trace.resolve()
    short = folder / "trace.jsonl"
    with trace.open("rb") as lines, short.open("wb") as file:
        for line in itertools.islice(lines, limit):
            request: dict[str, Any] = msgspec.json.decode(line)
            request["timestamp"] /= load
            file.write(msgspec.json.encode(request) + b"\n")
    return short


def main() -> None:
    options = parse_arguments()
    python = install_dynamo(options.venv, write)
    with tempfile.TemporaryDirectory(prefix="busway-replay-") as folder:
        trace = cut(options.trace, options.limit, options.load, Path(folder))
        write(ROW.format("", "reuse", "TTFT mean", "p50", "p90", "p99", "ITL mean", "trace s", "wall s"))
        for line in run_dynamo(python, trace, options.workers):
            _show(line)
        for policy in options.policy:
            ours, bound = run_busway(trace, policy, options)
            _show(ours)
        write(f"At best (clairvoyant cache, nobody waits): reuse {bound.clairvoyant:.4f}, {_times(bound.ttft)}")


def _show(line: Line) -> None:
    times = (line.ttft_mean_s, line.ttft_p50_s, line.ttft_p90_s, line.ttft_p99_s, line.itl_mean_s)
    cells = [f"{value_s * 1e3:.1f}" for value_s in times]
    write(ROW.format(line.name, f"{line.reuse:.4f}", *cells, f"{line.duration_s:.0f}", f"{line.wall_s:.0f}"))


def _times(ttft: Latency) -> str:
    values = {"mean": ttft.mean_s, "p50": ttft.p50_s, "p90": ttft.p90_s, "p99": ttft.p99_s}
    return "TTFT " + ", ".join(f"{name} {value_s * 1e3:.1f}" for name, value_s in values.items())


def _dynamo_line(name: str, report: Mapping[str, float], wall_s: float) -> Line:
    milliseconds = ("mean_ttft_ms", "median_ttft_ms", "p90_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "duration_ms")
    mean_s, p50_s, p90_s, p99_s, itl_s, duration_s = [report[key] / 1e3 for key in milliseconds]
    return Line(name, report["prefix_cache_reused_ratio"], mean_s, p50_s, p90_s, p99_s, itl_s, duration_s, wall_s)


if __name__ == "__main__":
    main()
