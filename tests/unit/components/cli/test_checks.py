"""What `busway doctor` says of a system that runs but does not serve."""

from pathlib import Path

from bus.config import Config
from components.cli.checks import Verdict, check_system
from components.supervisor.running import RunningSystem, hold, write_running


def test_the_mend_names_the_state_directory_that_was_asked_about(tmp_path: Path) -> None:
    system = RunningSystem(namespace="busway", url="http://127.0.0.1:9", nats_url="nats://127.0.0.1:9", pid=1)
    with hold(tmp_path):
        write_running(tmp_path, system)
        (finding,) = check_system(Config(state_dir=str(tmp_path)))
    assert finding.verdict is Verdict.FAIL
    assert f"{tmp_path}/logs" in finding.mend
    assert f"busway down --set state_dir={tmp_path}" in finding.mend
