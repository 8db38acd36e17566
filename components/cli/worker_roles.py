"""I/O. `busway worker set-role`: another role for a worker that runs, without a restart."""

from collections.abc import Sequence
from typing import get_args

from bus.config import Config
from bus.errors import NoResponder, NoWorker
from bus.messages.inference import Role, SetRoles
from components.cli.parser import UsageError, did_you_mean
from components.cli.terminal import say

ROLES: tuple[Role, ...] = get_args(Role)
SWITCH_TIMEOUT_S = 10.0
"""A worker opens its new lanes within milliseconds, and with NIXL a transfer within seconds."""
USAGE = "busway worker set-role WORKER ROLE   (busway doctor lists the workers)"


def read_words(words: Sequence[str]) -> tuple[str, list[Role]]:
    """Return worker and roles of `set-role WORKER ROLE...`; raise `UsageError`."""
    if words[0] != "set-role":
        raise UsageError(f"unknown action {words[0]!r}{did_you_mean(words[0], ['set-role'])}", USAGE)
    if len(words) < 3:
        raise UsageError("set-role needs a worker and at least one role", USAGE)
    for word in words[2:]:
        if word not in ROLES:
            raise UsageError(f"{word!r} is no role: {', '.join(ROLES)}", USAGE)
    wanted = set(words[2:])
    return words[1], [role for role in ROLES if role in wanted]


async def set_roles(config: Config, worker: str, roles: list[Role]) -> None:
    """Tell the worker, and say when it has changed; raise `NoWorker` when nobody of that name answers."""
    from bus.codec import codec, encode
    from bus.connection import open_bus
    from bus.subjects import Subjects, slug

    subjects = Subjects(config.namespace)
    if slug(worker) != worker:
        raise UsageError(f"{worker!r} is no worker's name: they look like w-1a2b3c4d", USAGE)
    async with open_bus(config.bus, subjects, name="set-role") as bus:
        try:
            answer = await bus.request(subjects.ctl(worker), encode(SetRoles(roles=roles)), timeout_s=SWITCH_TIMEOUT_S)
        except NoResponder as error:
            raise NoWorker(f"no worker {worker} is there: busway doctor lists those that are") from error
    say(f"{worker} serves {', '.join(codec(SetRoles).decode(answer.payload).roles)}")
