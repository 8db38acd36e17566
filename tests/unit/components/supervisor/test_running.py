"""One supervisor holds a state directory, and a dead one leaves nothing that counts."""

from pathlib import Path

import pytest

from components.supervisor.errors import CannotStart
from components.supervisor.running import RunningProcess, RunningSystem, hold, is_held, read_running, write_running

SYSTEM = RunningSystem(
    namespace="busway",
    url="http://127.0.0.1:8000",
    nats_url="nats://127.0.0.1:4222",
    pid=1,
    processes=[RunningProcess(name="worker-0", role="worker", pid=2)],
)


def test_what_runs_is_read_while_it_is_held(tmp_path: Path) -> None:
    assert read_running(tmp_path) is None
    with hold(tmp_path):
        assert read_running(tmp_path) is None
        write_running(tmp_path, SYSTEM)
        assert read_running(tmp_path) == SYSTEM
    assert not is_held(tmp_path)
    assert not (tmp_path / "up.json").exists()


def test_a_second_supervisor_is_told_of_the_first(tmp_path: Path) -> None:
    with hold(tmp_path):
        write_running(tmp_path, SYSTEM)
        with pytest.raises(CannotStart, match=r"http://127\.0\.0\.1:8000, process 1") as caught, hold(tmp_path):
            pass
        assert f"busway down --set state_dir={tmp_path}`" in caught.value.hint
        assert read_running(tmp_path) == SYSTEM


def test_what_a_dead_supervisor_left_does_not_count(tmp_path: Path) -> None:
    with hold(tmp_path):
        pass
    write_running(tmp_path, SYSTEM)
    assert read_running(tmp_path) is None
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"namespace": 3}', b"\xff"])
def test_a_broken_file_is_no_system(tmp_path: Path, content: bytes) -> None:
    with hold(tmp_path):
        (tmp_path / "up.json").write_bytes(content)
        assert read_running(tmp_path) is None
