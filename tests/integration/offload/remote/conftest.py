"""Real stores for tests: a redis-server by socket and TCP, the fast S3 stub, and frames to put there."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bus.server import free_port
from offload.key import HEADER_BYTES, BlockKey, seal, space_of
from offload.store import Blob
from offload.tier import Frame

FINGERPRINT = "test-model/float32/16"
STUB = Path(__file__).with_name("s3_stub.py")


class RedisServer:
    """One redis-server that keeps nothing on disk; `start` after `kill` begins with an empty one."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "redis.sock")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *options: str) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path]
        self._process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", *options], stdout=subprocess.DEVNULL
        )
        _wait_for(partial(_connect_unix, self.path), f"nobody listens on {self.path}")  # it comes after the port

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


class S3Stub:
    """The stub in a process of its own; faults are set by file, so that it needs no door for that."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._faults = directory / "faults.json"
        self._process = subprocess.Popen([sys.executable, str(STUB), str(self.port), str(self._faults)])
        wait_listening(self.port)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def set_fault(self, text: str) -> None:
        """Let every answer from now on have this fault; see the stub."""
        fresh = self._faults.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self._faults)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def s3_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Stub]:
    stub = S3Stub(tmp_path)
    for name, value in stub.environment.items():
        monkeypatch.setenv(name, value)
    yield stub
    stub.stop()


@pytest.fixture
def moto_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket in moto's server."""
    pytest.importorskip("moto", reason="moto is not installed: pip install -e '.[dev]'")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": f"http://127.0.0.1:{port}"},
    )
    try:
        wait_listening(port, 30.0)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        subprocess.run(
            [sys.executable, "-c", _MAKE_BUCKET, f"http://127.0.0.1:{port}"], check=True, stdout=subprocess.DEVNULL
        )
        yield "s3://kv-blocks/fleet"
    finally:
        process.kill()
        process.wait()


_MAKE_BUCKET = (
    "import sys, urllib.request as u;"
    "u.urlopen(u.Request(sys.argv[1] + '/kv-blocks', method='PUT', headers={'Authorization': "
    "'AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'}))"
)


def wait_listening(port: int, timeout_s: float = 30.0) -> None:
    _wait_for(
        lambda: socket.create_connection(("127.0.0.1", port), 0.2).close(), f"nobody listens on {port}", timeout_s
    )


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)


def _wait_for(connect: Callable[[], None], failure: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connect()
            return
        except OSError:
            assert time.monotonic() < deadline, failure
            time.sleep(0.01)


def make_frames(count: int, *, payload_bytes: int = 1000, salt: str = "", first: int = 1) -> list[Frame]:
    """Return sealed frames of one chain."""
    space, parent, frames = space_of(FINGERPRINT, salt), 0, []
    for number in range(first, first + count):
        view = memoryview(bytearray(HEADER_BYTES + payload_bytes))
        view[HEADER_BYTES:] = bytes([number % 251]) * payload_bytes
        key = BlockKey(space, number * 0x9E3779B97F4A7C15 % 2**64)
        seal(view, key, parent)
        frames.append(Frame(key, parent, view, view))
        parent = key.block_hash
    return frames


def empty(frames: list[Frame]) -> list[Frame]:
    """Return frames of the same keys whose bytes are still to come."""
    views = [memoryview(bytearray(len(frame.view))) for frame in frames]
    return [Frame(frame.key, 0, view, view) for frame, view in zip(frames, views, strict=True)]


def blobs(frames: list[Frame]) -> list[Blob]:
    return [Blob(frame.key, frame.view) for frame in frames]


@pytest.fixture
def frames() -> Callable[..., list[Frame]]:
    return make_frames
