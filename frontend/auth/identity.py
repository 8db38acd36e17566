"""Pure. Who asks. The door sets it for the task of a call, and what is done on its behalf finds it there."""

from contextvars import ContextVar
from typing import NamedTuple

from frontend.auth.limits import Account

NO_TENANT = "default"


def salt_of(tenant: str) -> str:
    """Return the salt of all that a tenant asks: who asks for another one's prompts cannot see that they are cached."""
    return "" if tenant == NO_TENANT else f"tenant:{tenant}"


class Identity(NamedTuple):
    """Whose request it is; without configured keys all are `ANYONE`."""

    tenant: str = NO_TENANT
    account: Account | None = None

    @property
    def cache_salt(self) -> str:
        """What separates its cached prefixes from those of others: what its key says, else its tenant."""
        return (self.account.key.cache_salt if self.account else "") or salt_of(self.tenant)


ANYONE = Identity()

caller: ContextVar[Identity] = ContextVar("caller", default=ANYONE)
"""Every request has its own task, and the tasks that it starts inherit this: no handler can forget to pass it on."""
