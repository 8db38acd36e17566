"""I/O. What `--secure` costs: the same load on both kinds of `busway up`, in turns: `python -m tests.bench.secure`.

Both run at the same time on free ports, with the mock engine; only CPU time is compared. Of the load generator, which
speaks TLS too, nothing is counted.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bus.errors import BuswayError
from bus.server import free_port
from components.bench.report import Cost, Process, align
from components.bench.run import BenchOptions, bench
from components.cli.completions import is_ready, served_models
from components.supervisor.running import RunningSystem, read_running
from tests.bench.busway import list_processes, make_command
from tests.bench.comparison import sum_by_role
from tests.bench.peer import BUILTIN_MODEL, write
from tests.bench.processes import READY_S, StartFailed, started
from tests.bench.systems import MODEL, PACED

NAMES = ("plain", "secure")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="max_tokens of a request")
    parser.add_argument("--words", type=int, default=256, help="words of a prompt; every prompt is unlike the others")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each run (two a round)")
    parser.add_argument("--rounds", type=int, default=3, help="of both; the median counts")
    return parser.parse_args()


@contextmanager
def started_system(name: str, folder: Path) -> Iterator[tuple[RunningSystem, tuple[Process, ...]]]:
    """Run `busway up`, with `--secure` if that is its name, until exit."""
    folder.mkdir()
    log = folder / "busway.log"
    command = make_command(BUILTIN_MODEL, free_port(), PACED, folder)
    with started([*command, *(["--secure"] if name == "secure" else [])], {**os.environ}, log) as up:
        deadline = time.monotonic() + READY_S
        while (running := read_running(folder / "state")) is None or not has_model(running):
            if up.poll() is not None or time.monotonic() > deadline:
                raise StartFailed(f"{name}: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield running, list_processes(up.pid)


def has_model(running: RunningSystem) -> bool:
    try:
        return is_ready(running.url, running.tls_ca) and MODEL in served_models(running.url, running.tls_ca)
    except BuswayError:
        return False


def measure(running: RunningSystem, processes: tuple[Process, ...], args: argparse.Namespace) -> dict[str, Cost]:
    """Load a system once; return what each role cost."""
    options = BenchOptions(
        url=running.url,
        tls_ca=running.tls_ca,
        model=MODEL,
        streams=(args.streams,),
        duration_s=args.duration,
        max_tokens=args.tokens,
        prompt_words=args.words,
    )
    return sum_by_role(bench(options, processes, lambda line: None)[0])


def render(costs: dict[str, list[dict[str, Cost]]]) -> str:
    """Return the medians side by side."""
    rows = [["CPU time, medians", "us/token plain", "secure", "ratio", "us/request plain", "secure"]]
    for role in costs["plain"][0]:
        tokens = [median(round_[role].token_us for round_ in costs[name]) for name in NAMES]
        requests = [median(round_[role].request_us for round_ in costs[name]) for name in NAMES]
        ratio = f"{tokens[1] / tokens[0]:.2f}" if tokens[0] else "-"
        row = [f"{tokens[0]:.1f}", f"{tokens[1]:.1f}", ratio, f"{requests[0]:.0f}", f"{requests[1]:.0f}"]
        rows.append([role, *row])
    return "\n".join(align(rows))


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="busway-bench-") as directory:
        folder = Path(directory)
        costs: dict[str, list[dict[str, Cost]]] = {name: [] for name in NAMES}
        with started_system("plain", folder / "plain") as plain, started_system("secure", folder / "secure") as secure:
            for number in range(args.rounds):
                for name, (running, processes) in zip(NAMES, (plain, secure), strict=True):
                    costs[name].append(measure(running, processes, args))
                    total = costs[name][-1]["whole path"]
                    write(f"round {number}, {name}: {total.token_us:.1f} us/token, {total.request_us:.0f} us/request")
        write(f"\n{args.streams} streams, {args.tokens} tokens, {args.words}-word prompts, {PACED.name} mock engines\n")
        write(render(costs))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
