"""The parts of a system follow from its configuration."""

from pathlib import Path

from msgspec.structs import replace

from bus.config import Config, FrontendConfig, RouterConfig, UpConfig, WorkerConfig
from components.supervisor.banner import ready_banner, start_line
from components.supervisor.plan import plan_parts, plan_spare
from components.supervisor.running import RunningProcess, RunningSystem

FILE = Path("/state/config.toml")
CONFIG = Config(up=UpConfig(workers=2, frontends=2), frontend=FrontendConfig(port=9000))


def test_parts_start_with_the_broker_and_have_names_of_their_own() -> None:
    parts = plan_parts(CONFIG, FILE, ("nats-server", "-c", "x"))
    assert [(part.name, part.role) for part in parts] == [
        ("nats", "nats"),
        ("worker-0", "worker"),
        ("worker-1", "worker"),
        ("frontend-0", "frontend"),
        ("frontend-1", "frontend"),
    ]
    assert parts[0].argv == ("nats-server", "-c", "x")
    assert all(str(FILE) in part.argv for part in parts[1:])


def test_frontends_share_one_port() -> None:
    frontends = [part for part in plan_parts(CONFIG, FILE, None) if part.role == "frontend"]
    assert [part.argv[-2:] for part in frontends] == [("--set", "frontend.shares_port=true")] * 2
    alone = replace(CONFIG, up=replace(CONFIG.up, frontends=1))
    assert "--set" not in plan_parts(alone, FILE, None)[-1].argv


def test_routers_are_as_many_as_asked_for_and_answer_gateways_on_ports_in_a_row() -> None:
    config = replace(CONFIG, up=replace(CONFIG.up, routers=2), router=RouterConfig(pick_port=9900))
    routers = [part for part in plan_parts(config, FILE, None) if part.role == "router"]
    assert [part.name for part in routers] == ["router-0", "router-1"]
    assert routers[1].argv[-2:] == ("--set", "router.pick_port=9901")
    assert "2 routers" in start_line(config)


def test_a_broker_elsewhere_is_not_started() -> None:
    assert all(part.role != "nats" for part in plan_parts(CONFIG, FILE, None))


def test_only_a_slow_start_gets_a_spare() -> None:
    spare = plan_spare(CONFIG, FILE)
    assert spare is not None
    assert spare.argv[-1] == "--spare"
    assert plan_spare(Config(worker=WorkerConfig(engine="mock")), FILE) is None


def test_the_banner_tells_how_to_talk_and_how_to_stop() -> None:
    processes = [RunningProcess(name=f"frontend-{n}", role="frontend", pid=n) for n in (1, 2)]
    system = RunningSystem(
        namespace="fleet", url="http://127.0.0.1:9000", nats_url="nats://127.0.0.1:4222", pid=3, processes=processes
    )
    banner = ready_banner(system, "it's-a-model", 1.25, Path(".busway"))
    for text in (
        "http://127.0.0.1:9000/v1   (shared by 2 frontends)",
        "OPENAI_BASE_URL=http://127.0.0.1:9000/v1",
        "busway chat",
        "busway tap 'fleet.>'",
        "Ctrl-C",
        "1.2 s",
        """'{"model":"it'"'"'s-a-model",""",
    ):
        assert text in banner
    assert start_line(CONFIG).startswith("busway ")
    assert "2 workers (torch, builtin) and 2 frontends" in start_line(CONFIG)


def test_where_keys_are_needed_the_banner_tells_how_to_come_by_one() -> None:
    system = RunningSystem(namespace="busway", url="http://127.0.0.1:9000", nats_url="nats://h:2", pid=3)
    banner = ready_banner(system, "", 1.0, Path(".busway"))
    assert "busway keys add NAME" in banner
    assert '-H "authorization: Bearer $BUSWAY_API_KEY"' in banner
    assert "OPENAI_API_KEY=$BUSWAY_API_KEY" in banner
    assert "KEY" not in ready_banner(system, "m", 1.0, Path(".busway")).replace("OPENAI_API_KEY=none", "")


def test_commands_of_the_banner_find_a_system_in_another_state_directory() -> None:
    system = RunningSystem(namespace="busway", url="http://127.0.0.1:9000", nats_url="nats://h:2", pid=3)
    banner = ready_banner(system, "m", 1.0, Path("/tmp/my state"))
    option = "--set 'state_dir=/tmp/my state'"
    for command in ("busway chat", "busway tap 'busway.>'", "busway doctor", "busway down"):
        assert f"{command} {option}" in banner
    assert "--set" not in ready_banner(system, "m", 1.0, Path(".busway"))


def test_the_address_of_a_broker_elsewhere_is_not_shown_for_it_may_hold_a_password() -> None:
    system = RunningSystem(namespace="busway", url="http://127.0.0.1:9000", nats_url="nats://me:secret@host", pid=3)
    assert "secret" not in ready_banner(system, "m", 1.0, Path(".busway"))
    nats = RunningProcess(name="nats", role="nats", pid=4)
    system = RunningSystem(namespace="busway", url="http://h:1", nats_url="nats://h:2", pid=3, processes=[nats])
    assert "nats://h:2" in ready_banner(system, "m", 1.0, Path(".busway"))
