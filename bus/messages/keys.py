"""Pure. API keys as the system keeps them: what a key may do, under the digest of the key, never the key itself."""

from typing import Annotated

from msgspec import Meta

from bus.messages.base import Fact, Hot

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Amount = Annotated[int, Meta(ge=1, le=2**40)]


class ApiKey(Fact, frozen=True, kw_only=True, omit_defaults=True, tag="api_key"):
    """What the holder of a key may do. None is no bound."""

    name: Name
    """For people: in lists and logs."""
    tenant: Name = "default"
    models: Annotated[list[Name], Meta(max_length=256)] = []
    """Globs of model names; empty: all."""
    requests_per_s: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    burst: Amount | None = None
    """Requests at once; None: those of one second."""
    tokens_per_min: Amount | None = None
    max_concurrent: Amount | None = None
    """Generations in flight, choices counted one by one."""
    expires_at: float | None = None
    """Unix seconds."""
    cache_salt: Annotated[str, Meta(max_length=256)] = ""
    """Separates cached prefixes from those of other salts."""


class KeyUse(Hot, frozen=True):
    """What one key used at one frontend since that told it last."""

    digest: Annotated[str, Meta(min_length=64, max_length=64)]
    requests: Annotated[int, Meta(ge=0, le=2**40)]
    tokens: Annotated[float, Meta(ge=-(2**53), le=2**53)]
    """As charged and settled: less than 0 where more was charged before than was used in the end."""
    running: Annotated[int, Meta(ge=0, le=2**40)]
    """Generations in flight now."""


class KeyUses(Hot, frozen=True, tag="key_uses"):
    """Keys with limits, told to the other frontends: a key has its limits once, however many frontends there are."""

    frontend: str
    uses: Annotated[list[KeyUse], Meta(max_length=1024)]
