"""Pure. The catalogue of subjects: what travels where, between whom, and why.

`busway subjects` prints it, `busway tap` decodes by it, and README.md shows it; tests hold all of these together.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Union

import msgspec

from bus.codec import Codec
from bus.errors import BadConfig
from bus.messages.batches import BatchJob, LineResult, StoredBatch, StoredFile
from bus.messages.fleet import (
    DeadLetter,
    FrontendCard,
    MetricsQuery,
    ModelCard,
    ProcessMetrics,
    RouterCard,
    WorkerCard,
    WorkerLoad,
)
from bus.messages.inference import Cancel, Drain, GenerateJob, Resume, SetRoles, StepBatch, UsageBatch
from bus.messages.keys import ApiKey, KeyUses
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvBatch, KvQuery, TierBatch
from bus.messages.responses import ResponseQuery, ResponseState, StoredResponse
from bus.messages.route import RouteBatch
from bus.messages.transfer import PeerAnswer, PeerQuery
from bus.streams import key_prefix
from bus.subjects import Subjects

CORE = "core"
"""Carried by core NATS: at most once, kept nowhere."""
RESERVED = "none yet"
"""The name is taken; nobody sends there so far."""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One family of subjects, or one kind of key in a bucket."""

    pattern: str
    """Subject or key without the namespace; `{x}` stands for one token."""
    carrier: str
    """`core`, `stream NAME`, `bucket NAME` or `none yet`."""
    sender: str
    receiver: str
    messages: tuple[type[msgspec.Struct], ...] = ()
    """Types that travel here as messages; none where it is plain JSON."""
    parts: tuple[type[msgspec.Struct], ...] = ()
    """Types that travel inside these messages, encoded one by one."""
    purpose: str

    @property
    def family(self) -> str:
        """First token of the subject, which is the name of its builder in `Subjects`."""
        return self.pattern.partition(".")[0]


_S = Subjects("x")


def _relative(subject: str) -> str:
    return subject.removeprefix("x.")


CHANNELS: tuple[Channel, ...] = (
    Channel(
        pattern=_relative(_S.ask("{model}", "{tenant}")),
        carrier=CORE,
        sender="any NATS client",
        receiver="frontend",
        purpose="requests in JSON, as over HTTP; the answer streams to the reply subject",
    ),
    Channel(
        pattern=_relative(_S.req("{model}", "{class}", "{tenant}")),  # type: ignore[arg-type]
        carrier="stream REQ",
        sender="frontend, worker",
        receiver="router",
        messages=(GenerateJob,),
        purpose="requests that wait for a router's choice",
    ),
    Channel(
        pattern=_relative(_S.work("{model}", "{role}", "{worker}", "{class}")),  # type: ignore[arg-type]
        carrier="stream WORK",
        sender="frontend, router, worker",
        receiver="worker",
        messages=(GenerateJob,),
        purpose="jobs that workers pull: a lane for each worker, and `any` for the pool",
    ),
    Channel(
        pattern=_relative(_S.out("{frontend}", "{worker}")),
        carrier=CORE,
        sender="worker",
        receiver="frontend",
        messages=(StepBatch,),
        purpose="new tokens for one frontend, of one engine step or a few fast ones",
    ),
    Channel(
        pattern=_relative(_S.ctl("{worker}")),
        carrier=CORE,
        sender="frontend",
        receiver="worker",
        messages=(Cancel, Resume, Drain, SetRoles),
        purpose="commands to one worker",
    ),
    Channel(
        pattern=_relative(_S.kv("{model}", "{worker}")),
        carrier="stream KV",
        sender="worker",
        receiver="router, worker, observers",
        messages=(KvBatch,),
        parts=(BlocksStored, BlocksRemoved, BlocksCleared),
        purpose="which KV blocks a worker stored and removed",
    ),
    Channel(
        pattern=_relative(_S.tier("{model}", "{owner}")),
        carrier="stream KV",
        sender="worker, people (busway cache)",
        receiver="router, worker",
        messages=(TierBatch,),
        parts=(BlocksStored, BlocksRemoved, BlocksCleared),
        purpose="which KV blocks are in a tier that workers share",
    ),
    Channel(
        pattern=_relative(_S.peer("{worker}")),
        carrier=CORE,
        sender="worker",
        receiver="worker",
        messages=(PeerQuery, PeerAnswer),
        purpose="blocks in a worker's host memory that another one would read; the offer goes to the reply subject",
    ),
    Channel(
        pattern=_relative(_S.kvq("{worker}")),
        carrier=CORE,
        sender="router, observers",
        receiver="worker",
        messages=(KvQuery,),
        purpose="missed KV events or a snapshot, sent as KvBatch to the reply subject",
    ),
    Channel(
        pattern=_relative(_S.load("{model}", "{worker}")),
        carrier=CORE,
        sender="worker",
        receiver="frontend, router, planner",
        messages=(WorkerLoad,),
        purpose="heartbeat with load, every 250 ms and on change",
    ),
    Channel(
        pattern=_relative(_S.route("{model}", "{router}")),
        carrier=CORE,
        sender="router",
        receiver="router, observers",
        messages=(RouteBatch,),
        purpose="which request a router sent to which worker",
    ),
    Channel(
        pattern=_relative(_S.pick("{model}")),
        carrier=CORE,
        sender="any gateway",
        receiver="router",
        purpose="which worker would be the best for a prompt, in JSON, optionally reserved",
    ),
    Channel(
        pattern=_relative(_S.usage("{model}", "{tenant}")),
        carrier="stream USAGE",
        sender="frontend",
        receiver="usage meter, any component",
        messages=(UsageBatch,),
        purpose="tokens that each finished request used, kept for 7 days",
    ),
    Channel(
        pattern=_relative(_S.response("{frontend}")),
        carrier=CORE,
        sender="frontend",
        receiver="frontend",
        messages=(ResponseQuery, ResponseState),
        purpose="whether a frontend is at work on a response, and its end; the state goes to the reply subject",
    ),
    Channel(
        pattern=_relative(_S.spent("{frontend}")),
        carrier=CORE,
        sender="frontend",
        receiver="frontend",
        messages=(KeyUses,),
        purpose="what API keys with limits used at a frontend, ten times a second at most",
    ),
    Channel(
        pattern=_relative(_S.job("{tenant}")),
        carrier="stream JOBS",
        sender="frontend",
        receiver="frontend",
        messages=(BatchJob,),
        purpose="batches that are to be carried on, each until it has ended",
    ),
    Channel(
        pattern=_relative(_S.metrics()),
        carrier=CORE,
        sender="frontend",
        receiver="any",
        messages=(MetricsQuery, ProcessMetrics),
        purpose="questions to every process for its metrics",
    ),
    Channel(
        pattern=_relative(_S.dead("{stream}")),
        carrier="stream DEAD",
        sender="any",
        receiver="people",
        messages=(DeadLetter,),
        purpose="messages that could not be handled, with the reason",
    ),
    Channel(
        pattern="worker.{worker}",
        carrier="bucket REG",
        sender="worker",
        receiver="frontend, router, planner",
        messages=(WorkerCard,),
        purpose="a worker that lives, and what it can do",
    ),
    Channel(
        pattern="model.{model}",
        carrier="bucket REG",
        sender="worker",
        receiver="frontend",
        messages=(ModelCard,),
        purpose="a model that is served, and where its tokenizer is",
    ),
    Channel(
        pattern="frontend.{frontend}",
        carrier="bucket REG",
        sender="frontend",
        receiver="worker, people",
        messages=(FrontendCard,),
        purpose="a frontend that lives, and its URL",
    ),
    Channel(
        pattern="router.{router}",
        carrier="bucket REG",
        sender="router",
        receiver="frontend, people",
        messages=(RouterCard,),
        purpose="a router that lives, and the models that it routes",
    ),
    Channel(
        pattern="{tenant}.{response}",
        carrier="bucket RESPONSES",
        sender="frontend",
        receiver="frontend",
        messages=(StoredResponse,),
        purpose="a response of the Responses API, kept for 7 days for later turns",
    ),
    Channel(
        pattern="{digest}",
        carrier="bucket KEYS",
        sender="people (busway keys)",
        receiver="frontend",
        messages=(ApiKey,),
        purpose="what the holder of an API key may do, under the digest of the key",
    ),
    Channel(
        pattern="{tenant}.{file}",
        carrier="bucket UPLOADS",
        sender="frontend",
        receiver="frontend",
        messages=(StoredFile,),
        purpose="a file that was uploaded, or made by a batch, kept for 30 days",
    ),
    Channel(
        pattern="{tenant}.{file}.{piece}",
        carrier="bucket PIECES",
        sender="frontend",
        receiver="frontend",
        purpose="half a megabyte of a file, as it is",
    ),
    Channel(
        pattern="{tenant}.{batch}",
        carrier="bucket BATCHES",
        sender="frontend",
        receiver="frontend",
        messages=(StoredBatch,),
        purpose="a batch, its state and progress, kept for 30 days",
    ),
    Channel(
        pattern="{batch}.{line}",
        carrier="bucket RESULTS",
        sender="frontend",
        receiver="frontend",
        messages=(LineResult,),
        purpose="what one line of a batch came to, written once, until the batch has ended",
    ),
)


def channel_of(subject: str, subjects: Subjects) -> Channel | None:
    """Return the channel of a subject, or of a bucket's key by the key's subject; None for foreign ones."""
    for channel in CHANNELS:
        if channel.carrier.startswith("bucket "):
            prefix = key_prefix(subjects, channel.carrier.removeprefix("bucket "))
        else:
            prefix = f"{subjects.namespace}."
        head = prefix + channel.pattern.partition("{")[0]
        num_dots = prefix.count(".") + channel.pattern.count(".")
        if subject.startswith(head) and subject.count(".") == num_dots:
            return channel
    return None


@cache
def channel_codec(messages: tuple[type[msgspec.Struct], ...]) -> Codec[Any]:
    """Return the decoder of what travels on a channel: of its one type, or of the union of its tagged types."""
    return Codec[Any](Union[messages])  # noqa: UP007 - the types are known at run time only


def find_message(name: str) -> type[msgspec.Struct]:
    """Return a message type by name, in any case; raise `BadConfig` that lists all."""
    for message_type in message_types():
        if message_type.__name__.lower() == name.lower():
            return message_type
    raise BadConfig(f"no message type {name!r}; there are {', '.join(t.__name__ for t in message_types())}")


def message_types() -> list[type[msgspec.Struct]]:
    """Return every type that travels, once, in the order of the catalogue."""
    return list(dict.fromkeys(t for channel in CHANNELS for t in (*channel.messages, *channel.parts)))


def schema(message_types: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    """Return the JSON schema of these types with all that they contain; `bytes` are base64 in JSON."""
    schemas, components = msgspec.json.schema_components(message_types, ref_template="#/$defs/{name}")
    return {"anyOf": list(schemas), "$defs": components} if len(schemas) > 1 else {**schemas[0], "$defs": components}


def markdown_table() -> str:
    """Return the table of README.md."""
    lines = ["| subject or key | carried by | who → who | message | for |", "|---|---|---|---|---|"]
    for channel in CHANNELS:
        messages = ", ".join(f"`{t.__name__}`" for t in channel.messages) or "JSON"
        cells = [f"`{channel.pattern}`", channel.carrier, f"{channel.sender} → {channel.receiver}", messages]
        lines.append(f"| {' | '.join(cells)} | {channel.purpose} |")
    return "\n".join(lines)
