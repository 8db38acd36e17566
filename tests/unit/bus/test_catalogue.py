"""The catalogue, the subject builders, the message types, the declared streams and the README say the same."""

import importlib
import json
import pkgutil
from pathlib import Path

import msgspec
import pytest

import bus.messages
from bus.catalogue import (
    CHANNELS,
    CORE,
    RESERVED,
    Channel,
    channel_of,
    find_message,
    markdown_table,
    message_types,
    schema,
)
from bus.errors import BadConfig
from bus.messages.base import Fact, Hot
from bus.subjects import FAMILIES, Subjects

ROOT = Path(__file__).parents[3]


def declared_types() -> set[type[msgspec.Struct]]:
    modules = [importlib.import_module(f"bus.messages.{m.name}") for m in pkgutil.iter_modules(bus.messages.__path__)]
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value not in (Fact, Hot, msgspec.Struct)
    }


def reachable_names() -> set[str]:
    return set(schema(message_types())["$defs"])


def test_every_message_type_is_in_the_catalogue() -> None:
    assert {t.__name__ for t in declared_types()} <= reachable_names()


def test_every_family_of_subjects_has_one_entry() -> None:
    families = [channel.family for channel in CHANNELS if not channel.carrier.startswith("bucket ")]
    assert sorted(families) == sorted(FAMILIES)


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.pattern)
def test_a_subject_finds_its_own_channel(channel: Channel) -> None:
    tokens = [token if "{" not in token else f"some-{token.strip('{}')}" for token in channel.pattern.split(".")]
    if channel.carrier.startswith("bucket "):
        subject = f"$KV.FLEET_{channel.carrier.removeprefix('bucket ')}.{'.'.join(tokens)}"
    else:
        subject = f"fleet.{'.'.join(tokens)}"
    assert channel_of(subject, Subjects("fleet")) == channel
    assert channel_of(subject, Subjects("other")) is None


def test_foreign_subjects_have_no_channel() -> None:
    for subject in (
        "",
        ".",
        "busway",
        "busway.",
        "busway.out",
        "busway.out.v1.f",
        "busway.out.v2.f.w",
        "$KV.x",
        "$KV.",
    ):
        assert channel_of(subject, Subjects()) is None


def test_the_carrier_is_the_stream_that_is_declared_for_the_subject() -> None:
    carried: dict[str, str] = {}
    for path in (ROOT / "nats" / "streams").glob("*.json"):
        for subject in json.loads(path.read_text())["subjects"]:
            carried[subject.removesuffix(">")] = f"stream {path.stem}"
    for channel in CHANNELS:
        if not channel.carrier.startswith("bucket "):
            declared = [name for head, name in carried.items() if channel.pattern.startswith(head)]
            assert declared == ([] if channel.carrier in (CORE, RESERVED) else [channel.carrier])
    assert {c.carrier for c in CHANNELS} >= set(carried.values())


def test_a_schema_is_found_by_name_in_any_case() -> None:
    step_batch = schema([find_message("stepbatch")])
    assert "StepBatch" in json.dumps(step_batch)
    with pytest.raises(BadConfig, match="StepBatch"):
        find_message("StepBach")


def test_the_readme_shows_the_catalogue() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("<!-- subjects -->")[2].partition("<!-- /subjects -->")[0]
    assert table.strip() == markdown_table(), "write it anew: busway subjects --markdown"
