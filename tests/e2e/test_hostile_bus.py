"""Bytes that are no messages, on every subject of a running system: it counts them, says so once, and goes on."""

import json
import random
import re
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from bus.catalogue import CHANNELS

PAYLOADS = [b"", b"\xc1", b"{", b"\x91" * 50_000, b"\xdd\xff\xff\xff\xff", b"\x80", b'{"type":"cancel"}', b"\xff" * 300]


@pytest.fixture
def system(shell: Any, wait_for: Callable[..., float]) -> dict[str, Any]:
    words = ["--engine", "mock", "--routers", "1", "--port", "0", "--set", "up.nats_port=0", "--set", "log.level=info"]
    up = shell.start("up", *words)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    state: dict[str, Any] = json.loads((shell.directory / ".busway" / "up.json").read_text())
    return state


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def ask(system: dict[str, Any]) -> int:
    body = {"model": "busway-tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{system['url']}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        tokens: int = json.load(answer)["usage"]["completion_tokens"]
    return tokens


def hostile_bytes(system: dict[str, Any], cards: dict[str, str]) -> bytes:
    """Return what a client that speaks NATS, and nothing that Busway speaks, sends to every subject there is."""
    rng = random.Random(5)
    fields = {"model": "busway-tiny", "tenant": "t", "class": "standard", "role": "both", "stream": "work"} | cards
    fields |= {
        name: "x" for entry in CHANNELS for name in re.findall(r"\{(\w+)\}", entry.pattern) if name not in fields
    }
    wire = b'CONNECT {"verbose":false,"headers":true}\r\n'
    for entry in CHANNELS:
        subject = entry.pattern.format(**fields)
        kind, _, name = entry.carrier.partition(" ")
        prefix = f"$KV.BUSWAY_{name}." if kind == "bucket" else f"{system['namespace']}."
        for payload in [*PAYLOADS, *(rng.randbytes(rng.randrange(200)) for _ in range(20))]:
            wire += f"PUB {prefix}{subject} {len(payload)}\r\n".encode() + payload + b"\r\n"
            wire += f"PUB {prefix}{subject} a.reply {len(payload)}\r\n".encode() + payload + b"\r\n"
        for block in (b"NATS/1.0\r\nx", b"\xff\xfe\r\n\r\n", b"NATS/1.0 \xff\r\n\r\n"):
            wire += f"HPUB {prefix}{subject} {len(block)} {len(block)}\r\n".encode() + block + b"\r\n"
        wire += f"PUB {prefix}{subject}".encode() + b".\xff\xfe 1\r\nx\r\n"
    return wire + b"PING\r\n"


def test_nothing_dies_of_bytes_on_any_subject(
    system: dict[str, Any], shell: Any, wait_for: Callable[..., float]
) -> None:
    tap = shell.start("tap", "--count", "40")
    assert tap.wait(120) == 0
    words = shell.output().split()
    worker = next(word for word in words if word.startswith("worker=")).removeprefix("worker=")
    host, port = system["nats_url"].removeprefix("nats://").split(":")
    hostile = hostile_bytes(system, {"worker": worker, "frontend": "f-00000000", "router": "r-00000000"})
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(hostile)
        answer = b""
        while b"PONG" not in answer:
            answer += connection.recv(65536)
    wait_for(lambda: ask(system) == 8)
    state = json.loads((shell.directory / ".busway" / "up.json").read_text())
    assert state["processes"] == system["processes"], "a process died"
    fleet = get(f"{system['url']}/metrics/fleet")
    assert 'busway_worker_tokens_total{process="w-' in fleet
    counted = [line for line in get(f"{system['url']}/metrics").splitlines() if line.startswith("busway_malformed")]
    assert any('family="load"' in line and float(line.split()[-1]) > 10 for line in counted), counted
    lines = (shell.directory / ".busway" / "logs" / "frontend-0.log").read_text().splitlines()
    said = [line for line in lines if '"message.malformed"' in line and '"family":"load"' in line]
    assert 1 <= len(said) <= 4, "once for payloads, once for what is no NATS message, by each of two that listen"
