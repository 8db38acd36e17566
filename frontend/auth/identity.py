"""Pure. Who asks. The door sets it for the task of a call, and what is done on its behalf finds it there."""

from contextvars import ContextVar
from typing import NamedTuple

from frontend.auth.limits import Account


class Identity(NamedTuple):
    """Whose request it is; without configured keys all are `ANYONE`."""

    tenant: str = "default"
    account: Account | None = None


ANYONE = Identity()

caller: ContextVar[Identity] = ContextVar("caller", default=ANYONE)
"""Every request has its own task, and the tasks that it starts inherit this: no handler can forget to pass it on."""
