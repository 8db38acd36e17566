"""Commands find what runs here, unless they are told of something else."""

from pathlib import Path

from bus.config import BusConfig, Config
from components.cli.terminal import find_broker
from components.supervisor.running import RunningSystem, hold, write_running


def test_the_broker_that_runs_here_is_found_unless_another_one_is_named(tmp_path: Path) -> None:
    here, elsewhere = "tls://127.0.0.1:4300", "nats://other:4222"
    config = Config(state_dir=str(tmp_path))
    named = Config(state_dir=str(tmp_path), bus=BusConfig(url=elsewhere))
    with hold(tmp_path):
        write_running(
            tmp_path,
            RunningSystem(namespace="mine", url="https://x", nats_url=here, pid=1, credentials_file="me", tls_ca="ca"),
        )
        found = find_broker(config)
        assert (found.namespace, found.bus.url, found.bus.credentials_file, found.bus.tls_ca) == (
            "mine",
            here,
            "me",
            "ca",
        )
        assert find_broker(named) == named
        assert find_broker(Config(state_dir=str(tmp_path), bus=BusConfig(url=here))) == found
    assert find_broker(config) == config
