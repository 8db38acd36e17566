"""I/O. `busway worker ls` and `set-role`: which workers there are, and another role for one while it runs."""

from collections.abc import Sequence
from typing import get_args

from bus.config import Config
from bus.errors import Malformed, NoResponder, NoWorker
from bus.messages.fleet import WorkerCard
from bus.messages.inference import Role, SetRoles
from components.cli.parser import UsageError, did_you_mean
from components.cli.terminal import say

ROLES: tuple[Role, ...] = get_args(Role)
ACTIONS = ("ls", "set-role")
SWITCH_TIMEOUT_S = 10.0
"""A worker opens its new lanes within milliseconds, and with NIXL a transfer within seconds."""
USAGE = "busway worker set-role WORKER ROLE...   (busway worker ls names the workers)"


def read_words(words: Sequence[str]) -> tuple[str, list[Role]] | None:
    """Return worker and roles of `set-role WORKER ROLE...`, None for `ls`; raise `UsageError`."""
    if words[0] not in ACTIONS:
        raise UsageError(f"unknown action {words[0]!r}{did_you_mean(words[0], ACTIONS)}", USAGE)
    if words[0] == "ls":
        if len(words) > 1:
            raise UsageError("ls takes nothing more", "busway worker ls")
        return None
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
            raise NoWorker(f"no worker {worker} is there: busway worker ls names those that are") from error
    say(f"{worker} serves {', '.join(codec(SetRoles).decode(answer.payload).roles)}")


async def list_workers(config: Config) -> None:
    """Print a line for each worker in the registry; raise `NoWorker` when there is none."""
    from bus.codec import codec
    from bus.connection import open_bus
    from bus.registry import REGISTRY
    from bus.subjects import Subjects

    cards: list[WorkerCard] = []
    async with open_bus(config.bus, Subjects(config.namespace), name="worker-ls") as bus:
        for entry in await bus.bucket(REGISTRY).entries():
            if entry.key.startswith("worker.") and entry.value is not None:
                try:
                    cards.append(codec(WorkerCard).decode(entry.value))
                except Malformed:
                    say(f"{entry.key.removeprefix('worker.')}: an unreadable card, of another version")
    if not cards:
        raise NoWorker("no worker is there: busway up starts some, busway worker one")
    say(f"{'worker':<12}{'roles':<18}{'model':<24}{'engine':<8}{'KV tokens':>10}  process")
    for card in sorted(cards, key=lambda each: (each.model, each.roles, each.worker)):
        tokens = card.num_blocks * card.block_size
        roles = ", ".join(card.roles)
        say(f"{card.worker:<12}{roles:<18}{card.model:<24}{card.engine:<8}{tokens:>10}  {card.pid} on {card.host}")
