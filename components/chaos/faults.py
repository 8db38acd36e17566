"""Pure. The faults there are, whom they hit, and when: a schedule that its seed decides."""

import random
import signal
from collections.abc import Mapping, Sequence

import msgspec

from bus.errors import BadConfig, NoWorker


class Fault(msgspec.Struct, frozen=True):
    """One thing to do to a process of a role."""

    name: str
    role: str
    signal: int
    thaw_after_s: float = 0.0
    """When a frozen process goes on; 0: the signal is not one to go on from."""
    is_default: bool = True


def _faults() -> list[Fault]:
    faults = []
    for role, freeze_s in (("worker", 5.0), ("router", 5.0), ("nats", 3.0), ("frontend", 3.0)):
        # The streams of a frontend end with it, and one that is frozen holds them up: only who asks gets that.
        is_default = role != "frontend"
        faults.append(Fault(f"kill-{role}", role, signal.SIGKILL, is_default=is_default))
        faults.append(Fault(f"freeze-{role}", role, signal.SIGSTOP, freeze_s, is_default=is_default))
        if role != "nats":
            faults.append(Fault(f"drain-{role}", role, signal.SIGTERM, is_default=is_default))
    return faults


FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in _faults()}


def choose_faults(names: Sequence[str], roles: Sequence[str]) -> list[Fault]:
    """Return the faults of these names, or the usual ones of what runs; raise `BadConfig` for what cannot be done."""
    chosen = []
    for name in names:
        fault = FAULTS.get(name)
        if fault is None:
            raise BadConfig(f"unknown fault {name!r}; there are: {', '.join(FAULTS)}")
        if fault.role not in roles:
            raise BadConfig(f"fault {name}: no {fault.role} runs here")
        chosen.append(fault)
    return chosen or [fault for fault in FAULTS.values() if fault.is_default and fault.role in roles]


class Schedule:
    """What to do next: every fault once, in an order by chance, before any of them again."""

    def __init__(self, faults: Sequence[Fault], rng: random.Random) -> None:
        self._faults = faults
        self._rng = rng
        self._bag: list[Fault] = []

    def pick(self, processes: Sequence[tuple[str, str]]) -> tuple[Fault, str]:
        """Return a fault and the name of the process to hit, of `processes` as pairs of name and role.

        Raises `NoWorker` when no process is there that a fault is for.
        """
        roles = {role for _, role in processes}
        if not any(fault.role in roles for fault in self._faults):
            wanted = " and no ".join(dict.fromkeys(fault.role for fault in self._faults))
            raise NoWorker(f"no {wanted} runs that could be disturbed")
        while True:
            if not self._bag:
                self._bag = self._rng.sample(self._faults, len(self._faults))
            fault = self._bag.pop()
            if fault.role in roles:
                return fault, self._rng.choice(sorted(name for name, role in processes if role == fault.role))
