"""Configuration: layers, and errors that name the key."""

import pytest

from bus.config import Config, load_config
from bus.errors import BadConfig


def test_defaults_need_nothing() -> None:
    assert load_config() == Config()


def test_later_layers_win() -> None:
    toml = "[worker]\nslots = 2\nblock_size = 32\nmax_running = 3"
    config = load_config(toml, {"BUSWAY__WORKER__SLOTS": "4", "BUSWAY__WORKER__BLOCK_SIZE": "64"}, ["worker.slots=8"])
    assert (config.worker.max_running, config.worker.block_size, config.worker.slots) == (3, 64, 8)


def test_foreign_environment_is_ignored() -> None:
    assert load_config(environment={"BUSWAY_HOME": "x", "PATH": "y"}) == Config()


def test_values_are_read_as_toml_and_else_as_text() -> None:
    config = load_config(settings=["worker.model=/models/llama", 'worker.roles=["prefill"]', "up.with_nats=false"])
    assert config.worker.model == "/models/llama"
    assert config.worker.roles == ("prefill",)
    assert config.up.with_nats is False


def test_component_settings_are_free() -> None:
    assert load_config(settings=["component.every_s=5"]).component == {"every_s": 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["worker.slot=8"], "unknown configuration key 'worker.slot'; did you mean 'slots'?"),
        (["wroker.slots=8"], "unknown configuration key 'wroker'; did you mean 'worker'?"),
        (["worker=8"], "'worker' is a section"),
        (["worker.slots.x=8"], "Expected `int`"),
        (["worker.slots=0"], ">= 1"),
        (["worker.engine=vlm"], "vlm"),
        (["frontend.port=70000"], "<= 65535"),
        (["worker.slots"], "write key=value"),
        (["a.b=1", "a=2", "a.b=3"], "unknown configuration key 'a'|is a value, not a section"),
    ],
)
def test_a_wrong_key_or_value_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(BadConfig, match=message.replace("?", r"\?")):
        load_config(settings=settings)


def test_broken_toml_names_the_file() -> None:
    with pytest.raises(BadConfig, match=r"laptop\.toml: not valid TOML"):
        load_config("[worker", source="laptop.toml")


def test_an_error_names_the_layer_at_fault() -> None:
    with pytest.raises(BadConfig, match=r"\ABUSWAY__WORKER__SLOTZ: unknown configuration key 'worker.slotz'"):
        load_config("[worker]\nslots = 2", {"BUSWAY__WORKER__SLOTZ": "4"}, source="mine.toml")
    with pytest.raises(BadConfig, match=r"\A--set worker.slots=x: worker.slots: Expected `int`"):
        load_config("[worker]\nslots = 2", settings=["worker.slots=x"], source="mine.toml")
    with pytest.raises(BadConfig, match=r"\Amine.toml: worker.slots: Expected `int`"):
        load_config("[worker]\nslots = 'x'", {"BUSWAY__WORKER__BLOCK_SIZE": "4"}, source="mine.toml")
