"""I/O. `python -m tests.sim --seeds 1000 --jobs 8`: many runs; `--seed N` repeats one and keeps its trace."""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from tests.sim.run import FAULTS_S, Verdict, run_seed
from tests.sim.sometimes import never

ENOUGH_SEEDS = 20
"""From so many runs on, everything in `sometimes` must have happened."""
MAX_SHOWN = 20
"""Lines of what was wrong in a run."""


def main() -> int:
    """Run; return 1 when a run went wrong, or when something never happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, metavar="N", default=ENOUGH_SEEDS, help="how many (20)")
    parser.add_argument("--first", type=int, metavar="SEED", default=0, help="where to begin (0)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="only this one; writes its trace")
    parser.add_argument("--faults-s", type=float, metavar="S", default=FAULTS_S, help="simulated seconds of faults")
    parser.add_argument("--jobs", type=int, metavar="N", default=1, help="how many at a time (1)")
    options = parser.parse_args()
    verdicts = []
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    with ProcessPoolExecutor(options.jobs) as processes:
        for verdict in processes.map(partial(run_seed, faults_s=options.faults_s), seeds):
            verdicts.append(verdict)
            print(describe(verdict), flush=True)
            if verdict.wrong or options.seed is not None:
                print(explain(verdict, options.faults_s), flush=True)
    missing = never(verdict.counts for verdict in verdicts) if len(verdicts) >= ENOUGH_SEEDS else []
    num_wrong = sum(bool(verdict.wrong) for verdict in verdicts)
    simulated_s, cpu_s = sum(each.simulated_s for each in verdicts), sum(each.cpu_s for each in verdicts)
    print(
        f"{len(verdicts)} seeds, {num_wrong} wrong; {sum(each.num_requests for each in verdicts)} requests, "
        f"{simulated_s:.0f} s simulated in {cpu_s:.1f} s of CPU: {simulated_s / cpu_s:.0f} a second",
        *missing,
        sep="\n",
    )
    return 1 if num_wrong or missing else 0


def describe(verdict: Verdict) -> str:
    """Return a run in one line."""
    return (
        f"seed {verdict.seed}: {'WRONG' if verdict.wrong else 'ok'}, {verdict.num_requests} requests, "
        f"{verdict.num_events} events, {verdict.simulated_s:.1f} s simulated in {verdict.cpu_s:.2f} s, {verdict.digest}"
    )


def explain(verdict: Verdict, faults_s: float) -> str:
    """Write the trace of a run; return what was wrong, how to see it again, and where the trace is."""
    path = Path(gettempdir()) / f"sim-{verdict.seed}.trace"
    path.write_text("\n".join(verdict.lines) + "\n", encoding="utf-8")
    command = f"python -m tests.sim --seed {verdict.seed} --faults-s {faults_s:g}"
    shown = [f"  {line}" for line in verdict.wrong[:MAX_SHOWN]]
    if len(verdict.wrong) > MAX_SHOWN:
        shown.append(f"  and {len(verdict.wrong) - MAX_SHOWN} more")
    return "\n".join([*shown, f"  again: {command}", f"  trace: {path}"])


if __name__ == "__main__":
    sys.exit(main())
