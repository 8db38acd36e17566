"""I/O. Run the same load against NVIDIA Dynamo and Busway and print both side by side: `python -m tests.bench.peer`.

Both serve the same model directory with their mock engines, one system alive at a time, on free ports; everything
that was started ends with this program, also on Ctrl-C.
"""

import argparse
import signal
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from components.bench.report import Round
from components.bench.run import BenchOptions, bench
from tests.bench.busway import started_busway
from tests.bench.comparison import render_comparison
from tests.bench.dynamo import VERSION, install_dynamo, started_dynamo
from tests.bench.systems import PACES, Pace, System

ROOT = Path(__file__).parents[2]
BUILTIN_MODEL = ROOT / "components" / "builtin" / "model"


def write(line: str) -> None:
    print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".bench" / "dynamo-venv", help="where Dynamo is installed")
    parser.add_argument("--model-path", type=Path, default=BUILTIN_MODEL, help="directory with tokenizer.json")
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--tokens", type=int, default=64, help="max_tokens of a request")
    parser.add_argument("--words", type=int, default=256, help="words of a prompt; every prompt is unlike the others")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each run (two a concurrency)")
    parser.add_argument("--pace", choices=PACES, nargs="+", default=list(PACES), help="step times of the mock engines")
    parser.add_argument("--only", choices=["dynamo", "busway"], help="measure one side")
    return parser.parse_args()


def measure(system: AbstractContextManager[System], args: argparse.Namespace, pace: Pace) -> list[Round]:
    """Start a system, bench it, end it."""
    with system as running:
        write(f"\n=== {running.name}, {pace.name}: {', '.join(f'{p.name} {p.pid}' for p in running.processes)}")
        options = BenchOptions(
            url=running.url,
            model=running.model,
            streams=tuple(args.streams),
            duration_s=args.duration,
            max_tokens=args.tokens,
            prompt_words=args.words,
        )
        return bench(options, running.processes, write)


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="busway-bench-") as name:
        folder = Path(name)
        python = install_dynamo(args.venv, write) if args.only != "busway" else None
        tables = []
        for pace in (PACES[name] for name in args.pace):
            work = folder / pace.name
            (work / "dynamo").mkdir(parents=True)
            (work / "busway").mkdir()
            peer = measure(started_dynamo(python, args.model_path, pace, work / "dynamo"), args, pace) if python else []
            ours = (
                measure(started_busway(args.model_path, pace, work / "busway"), args, pace)
                if args.only != "dynamo"
                else []
            )
            for theirs, mine in zip(peer, ours, strict=False):
                title = f"{pace.name}, {mine.streams} streams, {args.tokens} tokens, {args.words}-word prompts"
                tables.append(render_comparison(title, f"Dynamo {VERSION}", theirs, mine))
        for table in tables:
            write("\n" + table)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
