"""I/O. Read CPU seconds and memory of processes from /proc (Linux)."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from bus.errors import BadConfig, BuswayError

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessGone(BuswayError):
    """A process that is being measured no longer exists."""

    code = "process_gone"


class ProcessUsage(msgspec.Struct, frozen=True):
    """CPU seconds since the process began (user + system, with children it has reaped) and its resident memory.

    The kernel counts in ticks of 10 ms: measure over seconds.
    """

    pid: int
    parent_pid: int
    cpu_s: float
    rss_bytes: int


def read_usage(pid: int) -> ProcessUsage:
    """Return what process `pid` used until now; raises ProcessGone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        if not Path("/proc/self/stat").exists():
            raise BadConfig("measuring processes needs Linux (/proc)") from error
        raise ProcessGone(f"process {pid} is gone") from error
    return parse_stat(text)


def parse_stat(text: str) -> ProcessUsage:
    """Parse one line of /proc/PID/stat; the name in parentheses may hold spaces and parentheses itself."""
    before, _, after = text.rpartition(")")
    fields = after.split()
    ticks = sum(map(int, fields[11:15]))
    return ProcessUsage(int(before.partition(" ")[0]), int(fields[1]), ticks / _TICKS, int(fields[21]) * _PAGE_BYTES)


def list_descendants(pid: int) -> list[int]:
    """Return the pids of all living descendants of `pid`, nearest first."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = read_usage(int(entry.name)).parent_pid
            except ProcessGone:
                continue
    return find_descendants(parents, pid)


def find_descendants(parents: Mapping[int, int], pid: int) -> list[int]:
    """Return all descendants of `pid`, nearest first, given every process's parent."""
    found: list[int] = []
    level: Collection[int] = {pid}
    while level:
        level = sorted(child for child, parent in parents.items() if parent in level and child != parent)
        found += level
        level = set(level)
    return found
