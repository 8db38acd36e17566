"""I/O. Compare the CPU of our load generator with wrk's on the same stub server: `python -m tests.bench.yardstick`.

The stub streams `events` token chunks to every request, one a tick, so that both clients read the same arrivals.
"""

import argparse
import asyncio
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvloop

from components.bench.generator import run_load_process
from components.bench.requests import parse_target, render_prompt
from components.bench.results import LoadOptions

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"chatcmpl-09e78aac-bc44-44b0-996c-a4e2764ced83","choices":[{"index":0,"delta":{"content":"word"},'
    b'"finish_reason":null,"logprobs":null}],"created":1795216365,"model":"bench","object":"chat.completion.chunk"}\n\n'
)


def frame(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def last_bytes(events: int) -> bytes:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n' % events
    return frame(usage) + frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Stub(asyncio.Protocol):
    """Answer every POST with `events` chunks, written by the ticker; no request is parsed further than its length."""

    def __init__(self, active: dict["Stub", int], events: int) -> None:
        self.active, self.events = active, events
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, found, body = self.pending.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if found and length and len(body) >= int(length[1]):
            self.pending = b""
            self.transport.write(HEAD)
            self.active[self] = self.events

    def connection_lost(self, error: Exception | None) -> None:
        self.active.pop(self, None)


async def serve(port: int, events: int, tick_s: float) -> None:
    active: dict[Stub, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(active, events), "127.0.0.1", port, backlog=2048)
    token, last = frame(EVENT), last_bytes(events)

    def tick() -> None:
        loop.call_later(tick_s, tick)
        for stub, left in list(active.items()):
            if left > 1:
                stub.transport.write(token)
                active[stub] = left - 1
            else:
                del active[stub]
                stub.transport.write(token + last)

    tick()
    async with server:
        await server.serve_forever()


@contextmanager
def stub_server(events: int, tick_s: float) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--serve", str(port), "--events", str(events), "--tick", str(tick_s)]
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.yardstick", *options])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                probe.settimeout(0.1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit("the stub server ended")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_wrk(options: LoadOptions) -> tuple[float, float]:
    """Return the bytes read and CPU seconds of one wrk thread under the same load (identical prompts)."""
    target = parse_target(options)
    script = (
        f'wrk.method="POST"\nwrk.headers["Content-Type"]="application/json"\nwrk.body=[[{render_prompt(options, 0)}]]\n'
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "post.lua"
        path.write_text(script)
        before_s = children_cpu_s()
        url = f"http://{target.host}:{target.port}{target.path}"
        command = ["wrk", "-t1", f"-c{options.streams}", f"-d{options.duration_s:.0f}s", "-s", str(path), url]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cpu_s = children_cpu_s() - before_s
    found = re.search(r"([\d.]+)([KMG])B read", text)
    if not found:
        raise SystemExit(f"unexpected output of wrk:\n{text}")
    return float(found[1]) * 1024 ** (1 + "KMG".index(found[2])), cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--events", type=int, default=64)
    parser.add_argument("--tick", type=float, default=0.02, help="seconds between two events of a stream")
    parser.add_argument("--duration", type=float, default=8.0)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve(args.serve, args.events, args.tick))
        return
    for streams in args.streams:
        with stub_server(args.events, args.tick) as port:
            url = f"http://127.0.0.1:{port}"
            options = LoadOptions(url=url, model="stub", streams=streams, duration_s=args.duration)
            ours = run_load_process(options)
            event_us = ours.cpu_s / ours.num_events * 1e6
            line = f"{streams:4} streams  busway {event_us:.2f} us/event ({ours.num_events} events"
            line += f", {ours.num_failed} failed, ITL p50 {ours.itl.p50_s * 1e3:.2f} ms)"
            if shutil.which("wrk"):
                num_bytes, cpu_s = run_wrk(options)
                num_events = num_bytes / (len(frame(EVENT)) + (len(HEAD) + len(last_bytes(args.events))) / args.events)
                line += f"  wrk {cpu_s / num_events * 1e6:.2f} us/event ({num_events:.0f} events)"
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
