"""Pure. When a process that died starts again, when nothing is gained by it, and what is told of its death."""

import signal
from collections.abc import Sequence

import msgspec

STABLE_S = 10.0
"""A process that lived so long was healthy: its death is the first of a new count."""
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
QUICK_DEATHS = 3
"""So many quick deaths in a row are a crash loop."""
HOPELESS_EXIT_CODE = 2
"""Wrong configuration: the process said so, and would say it again."""

_DAILY = ('"level":"info"', '"level":"debug"')
_FEW = 3


class Life(msgspec.Struct, frozen=True):
    """What is remembered of one process over its restarts."""

    quick_deaths: int = 0
    """Deaths in a row of processes that did not live for `STABLE_S`."""


def bury(life: Life, lived_s: float) -> tuple[Life, float]:
    """Return the new memory after a death and the pause before the next start, in seconds.

    The first restart is immediate, so that an accident (a kill, an out-of-memory) costs no more than the start itself;
    what keeps dying gets pauses that double.
    """
    if lived_s >= STABLE_S:
        return Life(), 0.0
    quick = life.quick_deaths + 1
    return Life(quick), 0.0 if quick == 1 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(quick - 2, 16))


def is_hopeless(life: Life, exit_code: int, has_been_ready: bool) -> bool:
    """Say whether to give up, given the memory with the last death in it.

    Only before the system was ready for the first time: later, whatever broke may be mended from outside.
    """
    return not has_been_ready and (exit_code == HOPELESS_EXIT_CODE or life.quick_deaths >= QUICK_DEATHS)


def describe_exit(exit_code: int) -> str:
    """Return how a process ended, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def choose_last_words(lines: Sequence[str], num_lines: int = 12) -> list[str]:
    """Return what a person is to read of the end of a log: no daily business, unless there is nothing else."""
    telling = [line for line in lines if not any(mark in line for mark in _DAILY)]
    return telling[-num_lines:] or list(lines[-_FEW:])
