"""Pure. Who may do what on the bus: the rights of each role, from the catalogue of subjects and what it cannot say.

Rights are lists of what is allowed; all else is denied. `{{name()}}` stands for the process itself and `{{tag(x)}}` for
what its credentials say of it: the server fills them in, so that no process can speak in the name of another one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import get_args

import msgspec

from bus.catalogue import CHANNELS, Channel
from bus.messages.inference import LATENCY_CLASSES, Role
from bus.replies import INBOX
from bus.roles import OWNERS, PROCESSES, BusRole
from bus.streams import Declared, key_prefix, stream_name
from bus.subjects import ANY_WORKER, Subjects

NAME = "{{name()}}"
MODEL, OWN_LANE, SHARED_LANE = "{{tag(model)}}", "{{tag(own)}}", "{{tag(shared)}}"
CONNECTIONS = "server.*"
"""What the server tells about connections (`bus.gone`)."""
_LANES: tuple[Role, ...] = get_args(Role)

_PARTIES: dict[str, tuple[BusRole, ...]] = {
    "frontend": ("frontend",),
    "worker": ("worker",),
    "router": ("router",),
    "planner": ("planner",),
    "any component": ("component",),
    "usage meter": ("component",),
    "observers": ("observer",),
    "any": PROCESSES,
    "any NATS client": ("tenant",),
    "any gateway": ("gateway", "frontend"),
    "people": (),
}
"""The words of the catalogue. People come with the credentials of an operator."""

_ADDRESSED = frozenset({"work", "ctl", "kvq", "peer", "response"})
"""Families whose subjects name the process that is to read them; others name the one that writes."""


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What a role may do: subjects with wildcards and templates."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    max_responses: int = 0
    """Messages to the reply subject of one that was received; 0: none. Acknowledging a delivery is one of them."""
    responses_s: float = 0.0
    """For how long after it was received."""


def parties(words: str) -> tuple[BusRole, ...]:
    """Return the roles behind what the catalogue says of senders or receivers; a word that is new has no rights."""
    known = [_PARTIES.get(word.partition(" (")[0], ()) for word in words.split(", ")]
    return tuple(dict.fromkeys(role for roles in known for role in roles))


def rights(role: BusRole, subjects: Subjects, declared: Sequence[Declared]) -> Rights:
    """Return what a role may do in a namespace whose streams and buckets are `declared`."""
    if role == "operator":
        return Rights(publish=(">",), subscribe=(">",))
    publish, subscribe = list(_sent(role, subjects)), [f"{INBOX}.{NAME}.>", *_heard(role, subjects)]
    names = {(entry.kind, entry.short): entry.name for entry in declared}
    publish += [subject for entry in declared for subject in _of_stream(role, entry, subjects)]
    publish += _extra_sent(role, subjects, names)
    subscribe += _extra_heard(role, subjects)
    return Rights(
        publish=tuple(dict.fromkeys(publish)),
        subscribe=tuple(dict.fromkeys(subscribe)),
        max_responses=100_000 if role in PROCESSES else 0,
        responses_s=3600.0 if role == "frontend" else 300.0,
    )


def worker_tags(worker: str, models: Iterable[str]) -> list[str]:
    """Return what the credentials of a worker say: its models (slugs), its own lanes and those that it shares."""
    models = list(models)
    own = [f"own:{own_lane(worker, role)}" for role in _LANES]
    shared = [
        f"shared:{shared_lane(model, role, latency_class)}"
        for model, role, latency_class in product(models, _LANES, LATENCY_CLASSES)
    ]
    return [*(f"model:{model}" for model in models), *own, *shared]


def own_lane(worker: str, role: Role) -> str:
    """Return the name of the consumer of a worker's own lane."""
    return f"own-{worker}-{role}"


def shared_lane(model: str, role: Role, latency_class: str) -> str:
    """Return the name of the consumer that all workers of a model (slug) pull from."""
    return f"any-{model}-{role}-{latency_class}"


def _sent(role: BusRole, subjects: Subjects) -> Iterator[str]:
    for channel in CHANNELS:
        if role in parties(channel.sender) and role != "observer":
            yield _subject(channel, role, subjects, is_own=channel.family not in _ADDRESSED)


def _heard(role: BusRole, subjects: Subjects) -> Iterator[str]:
    for channel in CHANNELS:
        # What a work queue holds is pulled from it, and a bucket is watched through a consumer.
        if role in parties(channel.receiver) and (channel.carrier == "core" or _is_followed(channel)):
            is_own = channel.family in _ADDRESSED or role not in parties(channel.sender)
            yield _subject(channel, role, subjects, is_own=is_own)


def _is_followed(channel: Channel) -> bool:
    """Whether who reads the stream also listens to what is stored in it just now."""
    return channel.carrier == "stream KV"


def _subject(channel: Channel, role: BusRole, subjects: Subjects, *, is_own: bool) -> str:
    """Return the subject with a worker's model as its models, the role's own field, if it is, as its name; else `*`."""
    kind, _, short = channel.carrier.partition(" ")
    prefix = key_prefix(subjects, short) if kind == "bucket" else f"{subjects.namespace}."
    own = ({f"{{{role}}}": NAME} if is_own else {}) | ({"{model}": MODEL} if role == "worker" else {})
    tokens = [own.get(token, "*" if token.startswith("{") else token) for token in channel.pattern.split(".")]
    return prefix + ".".join(tokens)


def _of_stream(role: BusRole, declared: Declared, subjects: Subjects) -> Iterator[str]:
    """What a role asks of JetStream's API about one stream or bucket."""
    if role in PROCESSES or role == "observer":
        yield f"$JS.API.STREAM.INFO.{declared.name}"
    if role in OWNERS:
        yield f"$JS.API.STREAM.CREATE.{declared.name}"
        yield f"$JS.API.STREAM.UPDATE.{declared.name}"
    carrier = f"{declared.kind} {declared.short}"
    channels = [channel for channel in CHANNELS if channel.carrier == carrier]
    if not any(role in parties(each.receiver) or role in parties(each.sender) for each in channels):
        return
    if declared.kind == "bucket" and role in (*PROCESSES, "observer"):
        yield from _reading_bucket(declared.name, key_prefix(subjects, declared.short))
        yield f"$JS.API.CONSUMER.DELETE.{declared.name}.*"
    elif declared.kind == "stream" and role in PROCESSES and (role, declared.short) != ("worker", "WORK"):
        for channel in channels:
            if role in parties(channel.receiver):
                yield from _reading(declared.name, f"{subjects.namespace}.{channel.family}.>")
                if _is_followed(channel):
                    yield f"$JS.API.CONSUMER.DELETE.{declared.name}.*"


def _reading(stream: str, filter_subject: str) -> Iterator[str]:
    """Consumers with names of one's choice: those of watches are random, and known to nobody else."""
    yield f"$JS.API.CONSUMER.CREATE.{stream}.*.{filter_subject}"
    yield f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*"


def _reading_bucket(bucket: str, prefix: str) -> Iterator[str]:
    yield from _reading(bucket, f"{prefix}>")
    yield f"$JS.API.DIRECT.GET.{bucket}.{prefix}>"


def _extra_sent(role: BusRole, subjects: Subjects, names: dict[tuple[str, str], str]) -> Iterator[str]:
    """What the catalogue does not say."""
    if role in PROCESSES or role == "observer":
        yield "$JS.API.INFO"
    blobs = names.get(("objects", "FILES"), "")
    if blobs and role in ("frontend", "worker"):
        yield f"$JS.API.DIRECT.GET.{blobs}"
        yield f"$JS.API.DIRECT.GET.{blobs}.>"
    if role == "worker":
        work, lane = names["stream", "WORK"], f"{subjects.namespace}.work.v1.{MODEL}.*"
        if blobs:
            yield f"$O.{stream_name(subjects, 'FILES')}.>"
        yield f"$JS.API.CONSUMER.CREATE.{work}.{OWN_LANE}.{lane}.{NAME}.*"
        yield f"$JS.API.CONSUMER.CREATE.{work}.{SHARED_LANE}.{lane}.{ANY_WORKER}.*"
        yield f"$JS.API.CONSUMER.MSG.NEXT.{work}.{OWN_LANE}"
        yield f"$JS.API.CONSUMER.MSG.NEXT.{work}.{SHARED_LANE}"
    elif role == "router":
        yield subjects.out("*", NAME)
    elif role == "frontend":
        # A batch is acknowledged when it has ended, which may take a day; whose job was lost is found by looking.
        yield f"$JS.ACK.{names['stream', 'JOBS']}.>"
        yield f"$JS.API.DIRECT.GET.{names['stream', 'JOBS']}"
    elif role == "component":
        state, prefix = names["bucket", "STATE"], key_prefix(subjects, "STATE")
        yield from _reading_bucket(state, prefix)
        yield f"{prefix}>"
    elif role == "observer":
        yield from (
            f"$JS.API.{verb}" for verb in ("STREAM.NAMES", "STREAM.LIST", "CONSUMER.LIST.*", "CONSUMER.INFO.*.*")
        )
        yield from ("$SRV.PING", "$SRV.INFO", "$SRV.STATS")
        yield from _reading_bucket(names["bucket", "REG"], key_prefix(subjects, "REG"))


def _extra_heard(role: BusRole, subjects: Subjects) -> Iterator[str]:
    if role in PROCESSES or role == "observer":
        yield CONNECTIONS
    if role == "worker":
        yield subjects.ctl(ANY_WORKER)
    if role in ("frontend", "router"):
        yield "$SRV.>"
    if role in ("component", "observer"):
        yield subjects.load("*", "*")
