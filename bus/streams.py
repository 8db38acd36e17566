"""Pure. Streams and buckets as `nats/` declares them, and how what the server has compares with that."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from bus.errors import BadConfig
from bus.subjects import Subjects

Settings = Mapping[str, Any]
"""Stream settings with the field names and units (nanoseconds, bytes) of the JetStream API."""

_NAME = re.compile(r"[A-Z][A-Z0-9]{0,31}\Z")

_FIXED = frozenset({"storage", "retention", "max_consumers", "deny_delete", "deny_purge"})
"""What no server changes on a stream that exists."""

_KV: Settings = {
    "retention": "limits",
    "discard": "new",
    "deny_delete": True,
    "allow_rollup_hdrs": True,
    "allow_direct": True,
    "allow_msg_ttl": True,
}
_OBJECTS: Settings = {"retention": "limits", "discard": "new", "allow_rollup_hdrs": True, "allow_direct": True}


class Declared(msgspec.Struct, frozen=True):
    """One stream as it should be; `short` is its name in `nats/`, `settings` are complete for the server."""

    kind: str
    """`stream`, `bucket` or `objects`."""
    short: str
    settings: Settings

    @property
    def name(self) -> str:
        """Name of the stream on the server."""
        return str(self.settings["name"])

    @property
    def is_memory(self) -> bool:
        return bool(self.settings.get("storage") == "memory")

    @property
    def has_copies(self) -> bool:
        """Whether several brokers of a cluster keep it."""
        return "num_replicas" in self.settings


class Difference(msgspec.Struct, frozen=True):
    """One setting that the server has otherwise."""

    field: str
    declared: object
    found: object
    is_fixed: bool


def stream_name(subjects: Subjects, short: str) -> str:
    """Return the server's name of a declared stream: namespaces share a server without meeting."""
    return f"{subjects.namespace.upper()}_{short}"


def key_prefix(subjects: Subjects, bucket: str) -> str:
    """Return what stands before a bucket's keys in their subjects, the last dot included."""
    return f"$KV.{stream_name(subjects, bucket)}."


def declare(kind: str, short: str, text: str, subjects: Subjects, *, max_replicas: int = 1) -> Declared:
    """Read one file of `nats/`; raise `BadConfig` that names it.

    It says how many copies it is worth; there are `max_replicas` at most. One copy is no setting: what a server has
    more than that stays.
    """
    if not _NAME.match(short):
        raise BadConfig(f"nats: {short!r} is no name for a {kind}: capitals and digits, at most 32")
    try:
        given = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadConfig(f"nats: {kind} {short}: {error}") from error
    if (num_replicas := min(given.pop("num_replicas", 1), max_replicas)) > 1:
        given["num_replicas"] = num_replicas
    name = stream_name(subjects, short)
    if kind == "stream":
        filters = [f"{subjects.namespace}.{subject}" for subject in given.pop("subjects", [])]
        return Declared(kind, short, {**given, "name": name, "subjects": filters})
    if kind == "bucket":
        return Declared(kind, short, {**_KV, **given, "name": f"KV_{name}", "subjects": [f"$KV.{name}.>"]})
    filters = [f"$O.{name}.C.>", f"$O.{name}.M.>"]
    return Declared(kind, short, {**_OBJECTS, **given, "name": f"OBJ_{name}", "subjects": filters})


def compare(declared: Declared, found: Settings) -> list[Difference]:
    """Return where `found`, the settings of the server, differs from what is declared; what is not declared is free."""
    return [
        Difference(field, value, found.get(field), field in _FIXED)
        for field, value in declared.settings.items()
        if not _is_same(value, found.get(field))
    ]


def describe_mismatch(declared: Declared, differences: Iterable[Difference], reason: str) -> str:
    """Say what is wrong, field by field, and what mends it."""
    fields = "; ".join(f"{d.field} is {d.found!r}, should be {d.declared!r}" for d in differences)
    return (
        f"{declared.kind} {declared.name} cannot be used: {fields}. {reason} "
        f"If its content may go: nats stream rm --force {declared.name}"
    )


def _is_same(declared: object, found: object) -> bool:
    # The server leaves out what is false or zero, and says -1 for "no limit".
    return declared == found or (not declared and not found) or (declared in (0, -1) and found in (None, 0, -1))
