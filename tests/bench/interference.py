"""I/O. Measure how long prompts disturb those who decode: `python -m tests.bench.interference --engine torch`.

The same load twice: 16 streams decode while long prompts arrive, on two workers that do all, and on one that prefills
and one that decodes. Real processes and real transfers of blocks. The mock engine's steps take as long as those of a
GPU would (a step with a chunk of a prompt in it is as long as that chunk), so that the two cores of a laptop measure
the system and not themselves; the PyTorch engine's take what they take. Figures are what clients see: the times between
a stream's tokens while prompts are being prefilled.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import anyio
import msgspec

from bus.server import free_port, run_server
from tests.bench.processes import started, wait_for_model

MODEL = "busway-tiny"
MAX_MODEL_LEN = 8192
"""Of the built-in model."""
STREAMS = 16
STREAM_PROMPT, STREAM_OUTPUT, LONG_OUTPUT = 32, 8000, 4
"""Tokens; streams are cut when they were watched for long enough."""
WARM_S = 1.5
ENGINES = {
    "mock": (
        "worker.engine=mock",
        "mock.step_base_s=0.004",
        "mock.decode_base_s=0.004",
        "mock.decode_sequence_s=0.0001",
        "mock.prefill_token_s=0.00004",
        "mock.max_batch_tokens=2048",
        f"mock.max_model_len={MAX_MODEL_LEN}",
    ),
    "torch": ("worker.engine=torch", "worker.kv_cache_bytes=134217728"),
}
LAYOUTS = {"aggregated": ("both", "both"), "disaggregated": ("prefill", "decode")}


class Load(msgspec.Struct, frozen=True):
    """Long prompts: how many tokens each, how many a second, for how long."""

    tokens: int
    rate: float
    seconds: float


class Figures(msgspec.Struct, frozen=True):
    """What clients saw."""

    gaps_ms: list[float]
    """Between two arrivals of tokens of one stream."""
    first_token_ms: list[float]
    """Of the long prompts."""


@contextmanager
def workers(url: str, engine: str, roles: Sequence[str], folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Run a frontend and a worker for each role; yield the address of the former and the latter's metrics ports.

    Each token is sent by itself.
    """
    port = free_port()
    metrics_ports = [free_port() for _ in roles]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BUSWAY__BUS__URL": url}
    logs: list[Path] = []
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:

        def start(name: str, *settings: str, options: Sequence[str] = ()) -> None:
            command = [sys.executable, "-m", "components.cli", name.partition("-")[0], *options]
            for setting in settings:
                command += ["--set", setting]
            logs.append(folder / f"{name}.log")
            processes.append(stack.enter_context(started(command, environment, logs[-1])))

        start("frontend", f"frontend.port={port}", "frontend.write_gap_s=0")
        for number, role in enumerate(roles):
            metrics = ("--metrics-port", str(metrics_ports[number]))
            settings = (*ENGINES[engine], "worker.publish_gap_s=0", f'worker.roles=["{role}"]')
            start(f"worker-{number}", *settings, options=metrics)
        wait_for_model(f"http://127.0.0.1:{port}", MODEL, logs[0], processes)
        deadline = time.monotonic() + 30.0
        while not all("worker.started" in log.read_text() for log in logs[1:]):
            if time.monotonic() > deadline:
                raise SystemExit("a worker did not start: " + logs[-1].read_text()[-500:])
            time.sleep(0.05)
        time.sleep(1.0)  # all have seen each other's cards
        yield f"127.0.0.1:{port}", metrics_ports


def read_metric(ports: Sequence[int], line_start: str) -> float:
    """Return the sum of a metric over all workers."""
    total = 0.0
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(line_start))
    return total


async def stream(address: str, prompt: list[int], max_tokens: int, arrivals: list[float]) -> None:
    """Send one completion of token ids; put down when its bytes arrived, one time for each arrival with tokens."""
    host, _, port = address.partition(":")
    body = msgspec.json.encode(
        {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    is_done = False
    async with await anyio.connect_tcp(host, int(port)) as connection:
        await connection.send(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            while True:
                data = await connection.receive()
                if b'"text"' in data:
                    arrivals.append(time.perf_counter())
                is_done = is_done or b"[DONE]" in data
        except anyio.EndOfStream:
            if not is_done:
                raise SystemExit(f"a stream was cut after {len(arrivals)} arrivals") from None


async def drive(address: str, load: Load) -> Figures:
    """Let streams decode, send long prompts meanwhile, and look at the time in which those came."""
    dice = random.Random(1)

    def draw(length: int) -> list[int]:
        return dice.choices(range(300, 400), k=length)

    streams: list[list[float]] = [[] for _ in range(STREAMS)]
    firsts: list[float] = []

    async def prefill(prompt: list[int]) -> None:
        begun_at, arrivals = time.perf_counter(), list[float]()
        await stream(address, prompt, LONG_OUTPUT, arrivals)
        firsts.append(arrivals[0] - begun_at)

    async with anyio.create_task_group() as decoding:
        for arrivals in streams:
            decoding.start_soon(stream, address, draw(STREAM_PROMPT), STREAM_OUTPUT, arrivals)
        await anyio.sleep(WARM_S)
        begun_at = time.perf_counter()
        async with anyio.create_task_group() as prefilling:
            for number in range(int(load.rate * load.seconds)):
                await anyio.sleep(max(0.0, begun_at + number / load.rate - time.perf_counter()))
                prefilling.start_soon(prefill, draw(load.tokens))
        ended_at = time.perf_counter()
        decoding.cancel_scope.cancel()
    gaps = [
        (after - before) * 1000
        for arrivals in streams
        for before, after in pairwise(arrivals)
        if begun_at <= before and after <= ended_at
    ]
    return Figures(gaps, [each * 1000 for each in firsts])


async def main(engine: str, load: Load, layouts: Sequence[str]) -> None:
    """Measure each layout and print."""
    tails = {}
    for layout in layouts:
        with tempfile.TemporaryDirectory() as name:
            async with run_server(name) as server:
                with workers(server.url, engine, LAYOUTS[layout], Path(name)) as (address, metrics_ports):
                    figures = await drive(address, load)
                    num_read = read_metric(metrics_ports, 'busway_worker_fetches_total{outcome="read"}')
                    num_blocks = read_metric(metrics_ports, "busway_transfer_blocks_total")
        cuts = statistics.quantiles(figures.gaps_ms, n=1000)
        ttft_ms = statistics.median(figures.first_token_ms)
        tails[layout] = cuts[989]
        print(
            f"{layout:>14}  gaps={len(figures.gaps_ms)}  p50={cuts[499]:.1f} ms  p95={cuts[949]:.1f} ms  "
            f"p99={cuts[989]:.1f} ms  max={max(figures.gaps_ms):.1f} ms  "
            f"long prompts={len(figures.first_token_ms)}  their TTFT p50={ttft_ms:.0f} ms  "
            f"taken over={num_read:.0f} ({num_blocks:.0f} blocks)",
            flush=True,
        )
    if len(tails) == len(LAYOUTS):
        print(f"{'p99':>14}  disaggregated / aggregated = {tails['disaggregated'] / tails['aggregated']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", default="mock", choices=tuple(ENGINES))
    parser.add_argument("--tokens", type=int, default=6000, help="length of a long prompt")
    parser.add_argument("--rate", type=float, default=2.0, help="long prompts a second")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--layout", action="append", choices=tuple(LAYOUTS), help="only this one")
    given = parser.parse_args()
    load = Load(given.tokens, given.rate, given.seconds)
    anyio.run(main, given.engine, load, given.layout or tuple(LAYOUTS))
