"""Directories of sockets: those of the killed go, those of the living and of anybody else stay."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from components.engines.exchange import BlockMemory
from components.transfer import leftovers, open_transfer
from components.transfer.leftovers import AGE_S, sweep
from tests.integration.components.transfer.conftest import PEER

PREFIX, SOCKET = "kv-", "blocks"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory for temporary files; paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def make(path: Path, *, age_s: float = 2 * AGE_S, backlog: int = -1) -> socket.socket:
    """Make a directory that old, with a socket at which nobody listens, or somebody with that backlog."""
    path.mkdir()
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path / SOCKET))
    if backlog >= 0:
        bound.listen(backlog)
    grow_old(path, age_s)
    return bound


def grow_old(path: Path, age_s: float = 2 * AGE_S) -> None:
    made_at = path.stat().st_mtime - age_s
    os.utime(path, (made_at, made_at))


def test_only_what_nobody_serves_goes(place: Path) -> None:
    make(place / "kv-dead").close()
    (place / "kv-empty").mkdir()
    grow_old(place / "kv-empty")
    stay = ["kv-busy", "kv-fresh", "kv-full", "kv-link", "kv-live", "kv-starts", "other-dead"]
    with (
        make(place / "kv-live", backlog=1),
        make(place / "kv-busy", backlog=0) as busy,
        socket.socket(socket.AF_UNIX) as waiting,
        make(place / "kv-starts", age_s=AGE_S / 2),
    ):
        waiting.connect(busy.getsockname())  # one more would have to wait
        make(place / "kv-fresh", age_s=0.0).close()
        make(place / "other-dead").close()
        make(place / "kv-full").close()
        (place / "kv-full" / "notes").touch()
        grow_old(place / "kv-full")
        (place / "kv-link").symlink_to(place / "other-dead")
        assert sweep(PREFIX, SOCKET) == 2
        assert sorted(os.listdir(place)) == stay
        assert sweep(PREFIX, SOCKET) == 0
        assert os.listdir(place / "other-dead") == [SOCKET]


def test_a_start_is_not_held_up_by_years_of_leftovers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "MAX_SWEPT", 3)
    for number in range(5):
        make(place / f"kv-{number}").close()
    assert [sweep(PREFIX, SOCKET) for _ in range(3)] == [3, 2, 0]


@pytest.mark.anyio
async def test_the_next_worker_clears_up_after_a_killed_one(place: Path, memory: BlockMemory) -> None:
    words = ("loopback", "10", str(memory.block_bytes), "10", "f")
    async with await anyio.open_process([sys.executable, str(PEER), *words], stderr=None) as process:
        assert process.stdout is not None
        await process.stdout.receive()
        process.kill()
    (left,) = (place / name for name in os.listdir(place))
    async with open_transfer(memory, "w-1", transport="loopback"):
        assert left.exists(), "it might be about to listen"
    grow_old(left)
    async with open_transfer(memory, "w-2", transport="loopback"):
        assert not left.exists()
        assert len(os.listdir(place)) == 1
    assert not os.listdir(place)
