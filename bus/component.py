"""I/O. Pluggable components: what a user's class says about itself, and how it is found.

A component is any class like this one, in any module:

    class Alarm:
        subject = "load.v1.>"                      # what it receives, without the namespace

        def __init__(self, settings: AlarmSettings) -> None: ...          # optional: a msgspec struct, from [component]

        async def handle(self, load: WorkerLoad, context: Context) -> None: ...

The annotation of the handler's first parameter is the message type. With `durable = "a-name"` the messages come from
the stream that carries the subject and none is lost; without it they come from core NATS, at most once. `busway run
module:Class` does the rest (`components.runner`).
"""

import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from structlog.typing import FilteringBoundLogger

from bus.codec import encode
from bus.errors import BadConfig
from bus.protocol import AppendAck, Bucket, Bus

STATE = "STATE"
"""The bucket that is there for components' state."""

_DURABLE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")


class Context:
    """What a handler may use beside its message."""

    def __init__(
        self, bus: Bus, log: FilteringBoundLogger, subject: str, stream_seq: int = 0, num_delivered: int = 1
    ) -> None:
        self.bus = bus
        self.log = log
        self.subject = subject
        self.stream_seq = stream_seq
        """Position in the stream, from 1: the same for every delivery of one message. 0 outside streams."""
        self.num_delivered = num_delivered
        """1 at the first delivery."""

    def publish(self, subject: str, message: msgspec.Struct) -> None:
        """Send at most once, on a subject without the namespace; raise `BusUnavailable` when the buffer is full."""
        self.bus.publish(f"{self.bus.subjects.namespace}.{subject}", encode(message))

    async def append(self, subject: str, message: msgspec.Struct, *, msg_id: str = "") -> AppendAck:
        """Store in the stream that carries the subject (given without the namespace); raise as `Bus.append` does."""
        return await self.bus.append(f"{self.bus.subjects.namespace}.{subject}", encode(message), msg_id=msg_id)

    def bucket(self, name: str = STATE) -> Bucket:
        """Open a bucket."""
        return self.bus.bucket(name)


class UserComponent(Protocol):
    """An instance of a user's class. `Any`: each class has a message type of its own, known at run time only."""

    async def handle(self, message: Any, context: Context, /) -> None: ...


class ComponentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a component's class says about itself."""

    name: str
    factory: type
    subject: str
    """Filter without the namespace."""
    message_type: Any
    """What the handler's annotation says: a struct, or a union of tagged structs."""
    settings_type: type[msgspec.Struct] | None
    durable: str
    """Name of the consumer, shared by all processes that run the component; empty: core NATS."""
    in_flight: int
    """Messages that are handled at a time, over all processes when durable. 1 keeps them in order."""
    max_deliver: int
    """Deliveries after which a message whose handler keeps failing is buried."""
    timeout_s: float
    """Time for one message; longer is a failure."""

    def create(self, settings: Mapping[str, Any]) -> UserComponent:
        """Make the component with checked settings; raise `BadConfig` that names the key at fault."""
        if self.settings_type is None:
            if settings:
                raise BadConfig(f"component {self.name} takes no settings, but [component] has {', '.join(settings)}")
            return typing.cast(UserComponent, self.factory())
        known = [field.name for field in msgspec.structs.fields(self.settings_type)]
        for key in settings:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
                raise BadConfig(f"unknown setting 'component.{key}' of component {self.name}; {hint}")
        try:
            return typing.cast(UserComponent, self.factory(msgspec.convert(settings, self.settings_type, strict=False)))
        except msgspec.ValidationError as error:
            raise BadConfig(f"[component] of {self.name}: {error}") from error


def load_component(name: str) -> ComponentSpec:
    """Import `module:Class` (the working directory counts) and describe it; raise `BadConfig`."""
    module_name, colon, class_name = name.partition(":")
    if not (colon and module_name and class_name):
        raise BadConfig(f"component {name!r}: write module:Class, as in components.meter:UsageMeter")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise BadConfig(f"component {name!r}: no module {module_name!r}, neither here nor installed") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and hasattr(value, "handle")]
        close = difflib.get_close_matches(class_name, classes, n=1) or classes[:3]
        hint = f"did you mean {' or '.join(close)}?" if close else "it has no class with a handle method"
        raise BadConfig(f"component {name!r}: module {module_name!r} has no class {class_name!r}; {hint}")
    return describe(found)


def describe(factory: type) -> ComponentSpec:
    """Read a component's class; raise `BadConfig` that says what is missing."""
    name = factory.__name__
    subject = getattr(factory, "subject", None)
    if not isinstance(subject, str) or not subject:
        raise BadConfig(f'component {name}: say what it receives, as in subject = "usage.v1.>"')
    handle = getattr(factory, "handle", None)
    if handle is None or not inspect.iscoroutinefunction(handle):
        raise BadConfig(f"component {name}: needs `async def handle(self, message: SomeMessage, context: Context)`")
    annotations = _annotations(handle, name)
    if len(annotations) != 2:
        raise BadConfig(f"component {name}: handle takes an annotated message and a context, nothing else")
    durable = getattr(factory, "durable", "")
    if durable and not _DURABLE.match(durable):
        raise BadConfig(f"component {name}: durable {durable!r}: use lower-case letters, digits, '-' and '_'")
    return ComponentSpec(
        name=name,
        factory=factory,
        subject=subject,
        message_type=annotations[0],
        settings_type=_settings_type(factory, name),
        durable=durable,
        in_flight=_number(factory, "in_flight", 1, 1, 1024),
        max_deliver=_number(factory, "max_deliver", 5, 1, 1000),
        timeout_s=_number(factory, "timeout_s", 60.0, 0.001, 3600.0),
    )


def _settings_type(factory: type, name: str) -> type[msgspec.Struct] | None:
    if factory.__init__ is object.__init__:  # type: ignore[misc]
        return None
    annotations = _annotations(factory.__init__, name)  # type: ignore[misc]
    if not annotations:
        return None
    if len(annotations) != 1 or not (isinstance(annotations[0], type) and issubclass(annotations[0], msgspec.Struct)):
        raise BadConfig(f"component {name}: __init__ takes nothing, or one msgspec.Struct with its settings")
    return annotations[0]


def _annotations(function: Any, name: str) -> list[Any]:
    """Return the types of a method's parameters, without `self`."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters)[1:]
    missing = [parameter for parameter in parameters if parameter not in hints]
    if missing:
        raise BadConfig(f"component {name}: {function.__name__}: parameter {missing[0]!r} needs a type")
    return [hints[parameter] for parameter in parameters]


N = typing.TypeVar("N", int, float)


def _number(factory: type, key: str, default: N, low: N, high: N) -> N:
    value = getattr(factory, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadConfig(f"component {factory.__name__}: {key} = {value!r}: use a number from {low} to {high}")
    return type(default)(value)
