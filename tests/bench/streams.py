"""I/O. Many streams on one frontend for a minute, beside clients that hardly read: `python -m tests.bench.streams`.

A whole system with the mock engine is loaded with `--streams` streams. Meanwhile a client asks for something small
fifty times a second, which tells how late the frontend's event loop is; others stream a prompt whose answer is known,
and compare each character; and `--slow` clients read a byte a second of answers that are far larger than any buffer.
It ends with 1 when a request failed, a character was missing, or the frontend's memory grew.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from bus.server import free_port
from components.bench.cpu import read_usage
from components.bench.generator import run_load_process
from components.bench.report import Process
from components.bench.results import LoadOptions, LoadResult, compute_percentiles
from components.chaos.ask import Target, ask
from components.chaos.history import Question
from tests.bench.busway import list_processes
from tests.bench.processes import started, wait_for_model

MODEL = "streams"
TOKENS = 64
PROBE_S = 0.02
CHECKED = 8
"""Streams at a time whose text is compared."""
SLOW_CHOICES = 8
"""Choices of a slow client's request: together they are more than the kernel and the frontend buffer."""
GROWTH, SLACK_BYTES = 1.10, 8 * 2**20


class Seen(msgspec.Struct):
    """What was seen beside the load."""

    late_ns: list[int] = []
    """How long each small question took."""
    rss_bytes: list[int] = []
    """Of the frontend, once a second."""
    num_checked: int = 0
    wrong: list[str] = []
    num_cut: int = 0
    """Slow clients that the frontend gave up."""


@contextmanager
def started_system(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, tuple[Process, ...]]]:
    """Run `busway up` with places for all streams; yield its URL and its processes."""
    port, log = free_port(), folder / "busway.log"
    places = options.streams + SLOW_CHOICES * options.slow + 2 * CHECKED
    settings = (
        f"state_dir={folder / 'state'}",
        f"frontend.port={port}",
        f"up.nats_port={free_port()}",
        "worker.engine=mock",
        f"worker.served_name={MODEL}",
        f"worker.slots={places}",
        f"mock.max_running={places}",
        "mock.num_blocks=200000",
        f"mock.step_base_s={options.step}",
    )
    command: list[str | Path] = [sys.executable, "-m", "components.cli", "up"]
    for setting in settings:
        command += ["--set", setting]
    with started(command, {**os.environ, "OMP_NUM_THREADS": "1"}, log) as up:
        url = f"http://127.0.0.1:{port}"
        wait_for_model(url, MODEL, log, [up])
        yield url, list_processes(up.pid)


async def probe(host: str, port: int, seen: Seen) -> None:
    """Ask for what costs the frontend nothing, over one connection, until cancelled."""
    request = f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    async with await anyio.connect_tcp(host, port) as stream:
        while True:
            began = time.monotonic_ns()
            await stream.send(request)
            await stream.receive()
            seen.late_ns.append(time.monotonic_ns() - began)
            await anyio.sleep(PROBE_S)


async def check(target: Target, question: Question, seen: Seen) -> None:
    """Stream the same prompt again and again, and compare, until cancelled."""
    while True:
        answer = await ask(target, question)
        seen.num_checked += 1
        if answer.text != question.expected or answer.error:
            seen.wrong.append(answer.error or f"{len(answer.text)} characters, not {len(question.expected or '')}")
            await anyio.sleep(1.0)


async def crawl(host: str, port: int, seen: Seen) -> None:
    """Ask for a large answer and read a byte a second of it, until cancelled or cut off."""
    body = {"model": MODEL, "prompt": "slow", "max_tokens": 4096, "ignore_eos": True, "stream": True, "logprobs": 5}
    data = json.dumps(body | {"n": SLOW_CHOICES}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, port))  # to a listener on this machine: no wait
        client.send(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        client.setblocking(False)
        while True:
            await anyio.sleep(1.0)
            try:
                if not client.recv(1):
                    break
            except BlockingIOError:
                continue
            except OSError:
                break
    seen.num_cut += 1


async def watch(pid: int, seen: Seen) -> None:
    while True:
        seen.rss_bytes.append(read_usage(pid).rss_bytes)
        await anyio.sleep(1.0)


async def run(options: argparse.Namespace, url: str, frontend: int) -> tuple[LoadResult, Seen]:
    """Load for a while to warm up, then with all that watches."""
    place = urllib.parse.urlsplit(url)
    host, port = place.hostname or "", place.port or 0
    target = Target(host=host, port=port, model=MODEL, timeout_s=120.0)
    known = await ask(target, Question("The quick brown fox", TOKENS))
    if known.error:
        raise SystemExit(f"no answer to compare with: {known.error}")
    question = msgspec.structs.replace(known.question, expected=known.text)
    load = LoadOptions(url=url, model=MODEL, streams=options.streams, duration_s=options.warmup, max_tokens=TOKENS)
    load = msgspec.structs.replace(load, prompt_words=options.words, timeout_s=120.0)
    await anyio.to_thread.run_sync(run_load_process, load)
    seen = Seen()
    async with anyio.create_task_group() as tasks:
        for _ in range(options.slow):
            tasks.start_soon(crawl, host, port, seen)
        for _ in range(CHECKED):
            tasks.start_soon(check, target, question, seen)
        tasks.start_soon(probe, host, port, seen)
        tasks.start_soon(watch, frontend, seen)
        load = msgspec.structs.replace(load, duration_s=options.seconds, seed=1)
        result = await anyio.to_thread.run_sync(run_load_process, load)
        tasks.cancel_scope.cancel()
    return result, seen


def report(options: argparse.Namespace, load: LoadResult, seen: Seen, cpu_s: float) -> list[str]:
    """Print what was seen; return what is wrong."""
    late, wrong = compute_percentiles(seen.late_ns), list(seen.wrong)
    fifth = max(1, len(seen.rss_bytes) // 5)
    early, last = max(seen.rss_bytes[: 2 * fifth]), max(seen.rss_bytes[-fifth:])
    done = f"{load.num_ok} requests, {load.tokens_per_s:.0f} tokens/s, {load.num_failed} failed"
    print(f"{options.streams} streams for {load.wall_s:.0f} s: {done}")
    print(f"  frontend: {cpu_s / load.wall_s:.0%} of one CPU, {1e6 * cpu_s / max(1, load.num_tokens):.1f} us a token")
    print(f"  gap between tokens: p50 {load.itl.p50_s:.3f} s, p99 {load.itl.p99_s:.3f} s (a step: {options.step} s)")
    print(f"  event loop: p50 {late.p50_s * 1e3:.1f} ms, p99 {late.p99_s * 1e3:.1f} ms late, {late.count} times asked")
    print(f"  {seen.num_checked} streams compared; {options.slow} slow clients, {seen.num_cut} given up")
    print(f"  memory of the frontend: {early / 2**20:.0f} MiB early, {last / 2**20:.0f} MiB at the end")
    if load.num_failed:
        wrong.append(f"{load.num_failed} requests failed: {load.failures}")
    if load.num_tokens != load.num_ok * TOKENS:
        wrong.append(f"{load.num_tokens} tokens in {load.num_ok} answers of {TOKENS}")
    if not seen.num_checked:
        wrong.append("no stream was compared")
    if last > GROWTH * early + SLACK_BYTES:
        wrong.append("memory grew")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=8, help="clients that read a byte a second")
    parser.add_argument("--words", type=int, default=64, help="words of a prompt")
    parser.add_argument("--step", type=float, default=0.2, help="seconds of an engine step")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warmup", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started_system(options, Path(folder)) as (url, processes):
        frontend = next(process.pid for process in processes if process.role == "frontend")
        before = read_usage(frontend).cpu_s
        load, seen = anyio.run(run, options, url, frontend)
        wrong = report(options, load, seen, read_usage(frontend).cpu_s - before)
    for line in wrong[:20]:
        print(f"wrong: {line}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
