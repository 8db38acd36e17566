"""A component's class is read once, at the start, and every mistake in it has a name."""

import sys
from pathlib import Path

import msgspec
import pytest

from bus.component import Context, describe, load_component
from bus.errors import BadConfig
from bus.messages.fleet import WorkerLoad
from bus.messages.inference import RequestUsage


class Settings(msgspec.Struct, frozen=True):
    limit: int = 5
    name: str = "x"


class Good:
    subject = "load.v1.>"
    durable = "good"
    in_flight = 4

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def handle(self, message: WorkerLoad | RequestUsage, context: Context) -> None: ...


def test_everything_comes_from_the_class() -> None:
    spec = describe(Good)
    assert (spec.name, spec.subject, spec.durable, spec.in_flight) == ("Good", "load.v1.>", "good", 4)
    assert spec.message_type == WorkerLoad | RequestUsage
    assert spec.settings_type is Settings
    assert (spec.max_deliver, spec.timeout_s) == (5, 60.0)


def test_settings_are_converted_and_checked() -> None:
    component = describe(Good).create({"limit": "7"})
    assert isinstance(component, Good)
    assert component.settings == Settings(limit=7)
    with pytest.raises(BadConfig, match="did you mean 'limit'"):
        describe(Good).create({"limits": 1})
    with pytest.raises(BadConfig, match="limit"):
        describe(Good).create({"limit": "many"})


def test_a_component_without_settings_takes_none() -> None:
    class Plain:
        subject = "load.v1.>"

        async def handle(self, message: WorkerLoad, context: Context) -> None: ...

    assert isinstance(describe(Plain).create({}), Plain)
    with pytest.raises(BadConfig, match="takes no settings"):
        describe(Plain).create({"a": 1})


class NoSubject:
    async def handle(self, message: WorkerLoad, context: Context) -> None: ...


class NoHandler:
    subject = "load.v1.>"


class NotAsync:
    subject = "load.v1.>"

    def handle(self, message: WorkerLoad, context: Context) -> None: ...


class Untyped:
    subject = "load.v1.>"

    async def handle(self, message, context: Context) -> None: ...  # type: ignore[no-untyped-def]


class OneParameter:
    subject = "load.v1.>"

    async def handle(self, message: WorkerLoad) -> None: ...


class OddSettings(Good):
    def __init__(self, limit: int) -> None: ...


class OddDurable(Good):
    durable = "with.dots"


class OddNumber(Good):
    in_flight = 0


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (NoSubject, "subject ="),
        (NoHandler, "async def handle"),
        (NotAsync, "async def handle"),
        (Untyped, "'message' needs a type"),
        (OneParameter, "an annotated message and a context"),
        (OddSettings, "msgspec.Struct"),
        (OddDurable, "with.dots"),
        (OddNumber, "in_flight = 0"),
    ],
)
def test_a_wrong_class_is_named_with_what_is_wrong(factory: type, says: str) -> None:
    with pytest.raises(BadConfig, match=says) as caught:
        describe(factory)
    assert factory.__name__ in str(caught.value)


def test_the_worked_example_is_found_by_name() -> None:
    assert load_component("components.meter:UsageMeter").durable == "usage-meter"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "module:Class"),
        ("components.meter", "module:Class"),
        ("components.meter:", "module:Class"),
        ("components.nothing:X", "no module"),
        ("nothing_at_all:X", "no module"),
        ("components.meter:UsageMetre", "did you mean UsageMeter"),
        ("bus.errors:Foo", "no class with a handle method"),
    ],
)
def test_a_name_that_leads_nowhere_says_why(name: str, says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        load_component(name)


def test_a_component_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_alarm_here.py").write_text(
        "from bus.messages.fleet import WorkerLoad\n"
        "from bus.component import Context\n"
        "class Alarm:\n"
        "    subject = 'load.v1.>'\n"
        "    async def handle(self, load: WorkerLoad, context: Context) -> None: ...\n"
    )
    (tmp_path / "my_broken_here.py").write_text("import does_not_exist_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_component("my_alarm_here:Alarm").message_type is WorkerLoad
    with pytest.raises(ModuleNotFoundError, match="does_not_exist_at_all"):
        load_component("my_broken_here:Alarm")
