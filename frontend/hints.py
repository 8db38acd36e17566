"""Pure. What an agent knows about its request: read from body and headers, under our names and those of others.

Where several speak of the same thing, the first of these counts: `busway` in the body, headers, `nvext`, the plain
fields of vLLM. None of it changes what is generated. `frontend/README.md` has the table.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from bus.errors import InvalidRequest
from bus.messages.inference import Hints, LatencyClass
from frontend.request import Generation

MAX_PRIORITY = 100

Text = Annotated[str, Meta(max_length=256)]
Priority = Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
NumTokens = Annotated[int, Meta(ge=1, le=2**31)]
PinTime = Annotated[float, Meta(ge=0.0, le=7 * 86_400)]
Timeout = Annotated[float, Meta(gt=0.0, le=7 * 86_400)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class BuswayHints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`busway` in a body, and the headers `x-busway-*`. None: nothing is said."""

    latency_class: LatencyClass | None = None
    priority: Priority | None = None
    """Higher goes first, within class and tenant."""
    expected_output_tokens: NumTokens | None = None
    pin_ttl_s: PinTime | None = None
    """Keep the prefix of this request cached for so long."""
    session: Text | None = None
    """What belongs together: a conversation, an agent's run."""
    timeout_s: Timeout | None = None
    """An answer later than that is of no use."""
    cache_salt: Text | None = None


Given = BuswayHints
NOTHING_GIVEN = BuswayHints()


class AgentHints(msgspec.Struct, frozen=True):
    """`nvext.agent_hints`, as NVIDIA Dynamo has them."""

    priority: Int64 | None = None
    osl: NumTokens | None = None


class CacheControl(msgspec.Struct, frozen=True):
    """`nvext.cache_control`."""

    type: Literal["ephemeral"] = "ephemeral"
    ttl: Literal["5m", "1h"] = "5m"


class SessionControl(msgspec.Struct, frozen=True):
    """`nvext.session_control`."""

    session_id: Text | None = None


class NvExt(msgspec.Struct, frozen=True):
    """`nvext` in a body; what stands there beside these is ignored."""

    agent_hints: AgentHints | None = None
    cache_control: CacheControl | None = None
    session_control: SessionControl | None = None
    cache_salt: Text | None = None


class HintedBody(Protocol):
    """What a body may say."""

    @property
    def busway(self) -> BuswayHints | None: ...
    @property
    def nvext(self) -> NvExt | None: ...
    @property
    def priority(self) -> int | None: ...
    @property
    def cache_salt(self) -> str | None: ...


_FIELDS = tuple(field.name for field in msgspec.structs.fields(BuswayHints))
_PREFIX = b"x-busway-"
_HEADERS = {_PREFIX + name.replace("_", "-").encode(): name for name in _FIELDS}
_HEADERS |= {b"x-dynamo-request-priority": "priority", b"x-dynamo-session-id": "session"}
_TTL_S = {"5m": 300.0, "1h": 3600.0}


def read_headers(headers: Mapping[bytes, bytes]) -> BuswayHints:
    """Return what headers say; raise `InvalidRequest` that names the header. `x-busway-*` go before `x-dynamo-*`."""
    if headers.keys().isdisjoint(_HEADERS):
        return NOTHING_GIVEN
    said: dict[str, str] = {}
    for name, value in headers.items():
        field = _HEADERS.get(name)
        if field is not None and (field not in said or name.startswith(_PREFIX)):
            said[field] = value.decode("latin-1")
    values: dict[str, Any] = {}
    for field, text in said.items():
        kind = BuswayHints.__annotations__[field]
        try:
            values[field] = msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError as error:
            shown = f"x-busway-{field.replace('_', '-')}"
            raise InvalidRequest(f"Invalid value for the header '{shown}': {error}.", param=shown) from error
    return BuswayHints(**values)


def merge(body: HintedBody, headers: BuswayHints) -> BuswayHints:
    """Return all that is said; `NOTHING_GIVEN` itself where nothing is."""
    if body.busway is None and body.nvext is None and body.priority is None and body.cache_salt is None:
        return headers
    sources = [body.busway or NOTHING_GIVEN, headers, _of_nvext(body.nvext or NvExt())]
    # vLLM's priority is lower for what goes first.
    lowest_first = None if body.priority is None else -_clamp(body.priority)
    sources.append(BuswayHints(priority=lowest_first, cache_salt=body.cache_salt))
    values: dict[str, Any] = {}
    for field in _FIELDS:
        said = [value for source in sources if (value := getattr(source, field)) is not None]
        if said:
            values[field] = said[0]
    return BuswayHints(**values)


def _of_nvext(given: NvExt) -> BuswayHints:
    agent, control = given.agent_hints or AgentHints(), given.cache_control
    return BuswayHints(
        priority=None if agent.priority is None else _clamp(agent.priority),
        expected_output_tokens=agent.osl,
        pin_ttl_s=None if control is None else _TTL_S[control.ttl],
        session=None if given.session_control is None else given.session_control.session_id,
        cache_salt=given.cache_salt,
    )


def _clamp(priority: int) -> int:
    return max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))


def join_salts(key_salt: str, own: str) -> str:
    """Return the salt of a request: its own, behind that of its key, if that has one."""
    return f"{len(key_salt)}:{key_salt}:{own}" if key_salt else own


def apply(generation: Generation, given: BuswayHints, key_salt: str, now: float) -> Generation:
    """Return the generation with hints. The salt of a key stands before that of the request: no request leaves it."""
    return msgspec.structs.replace(
        generation,
        latency_class=given.latency_class or generation.latency_class,
        session=generation.session if given.session is None else given.session,
        cache_salt=join_salts(key_salt, given.cache_salt or ""),
        deadline_at=generation.deadline_at if given.timeout_s is None else now + given.timeout_s,
        hints=Hints(
            priority=given.priority or 0,
            expected_output_tokens=given.expected_output_tokens,
            pin_ttl_s=given.pin_ttl_s,
        ),
    )
