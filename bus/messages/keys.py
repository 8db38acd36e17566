"""Pure. API keys as the system keeps them: what a key may do, under the digest of the key, never the key itself."""

from typing import Annotated

from msgspec import Meta

from bus.messages.base import Fact

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
