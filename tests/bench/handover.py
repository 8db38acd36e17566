"""I/O. Measure how soon a worker decodes what another one prefilled: `python -m tests.bench.handover`.

One worker prefills, one decodes: real processes, the PyTorch engine, real blocks. Requests come one by one and have the
machine to themselves. A client sees its first token when the prompt is computed, which on the decoding worker would
take as long, and the second one when that worker has taken the job, read the blocks and made a step.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import anyio

from bus.server import run_server
from tests.bench.interference import LAYOUTS, read_metric, stream, workers

OUTPUT = 64


async def main(num_tokens: int, rounds: int) -> None:
    """Measure and print."""
    dice = random.Random(1)
    seen: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        async with run_server(name) as server:
            with workers(server.url, "torch", LAYOUTS["disaggregated"], Path(name)) as (address, metrics_ports):
                for _ in range(rounds + 1):
                    begun_at, arrivals = time.perf_counter(), list[float]()
                    await stream(address, dice.choices(range(300, 400), k=num_tokens), OUTPUT, arrivals)
                    seen.append((arrivals[0] - begun_at, arrivals[1] - arrivals[0]))
                num_read = read_metric(metrics_ports, 'busway_worker_fetches_total{outcome="read"}')
                read_s = read_metric(metrics_ports, "busway_transfer_seconds_sum")
                num_bytes = read_metric(metrics_ports, "busway_transfer_bytes_total")
    if num_read != rounds + 1:
        raise SystemExit(f"{num_read:.0f} of {rounds + 1} prompts were handed over")
    prefill_ms, next_ms = (statistics.median(each) * 1000 for each in zip(*seen[1:], strict=True))
    print(
        f"{num_tokens} tokens: prefilled in {prefill_ms:.1f} ms, the decoding worker's first token came "
        f"{next_ms:.1f} ms later ({next_ms / prefill_ms:.3f} of it), {read_s / num_read * 1000:.1f} ms of them for "
        f"{num_bytes / num_read / 1e6:.1f} MB of blocks ({num_bytes / read_s / 1e9:.1f} GB/s)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    anyio.run(main, given.tokens, given.rounds)
