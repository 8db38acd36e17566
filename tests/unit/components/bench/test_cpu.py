"""Pure. Lines of /proc are read right whatever the process is called, and trees are complete."""

import os
from pathlib import Path

import pytest

from components.bench.cpu import ProcessGone, ProcessUsage, find_descendants, parse_stat, read_usage

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_a_name_with_spaces_and_parentheses_does_not_shift_the_fields() -> None:
    line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 100 50 20 5 20 0 3 0 99 1000000 25 184467 1 1 0 0\n"
    usage = parse_stat(line)
    assert usage == ProcessUsage(pid=42, parent_pid=7, cpu_s=175 / TICKS, rss_bytes=25 * PAGE)


def test_descendants_of_descendants_are_found_nearest_first() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 2, 5: 4, 6: 1, 7: 7}
    assert find_descendants(parents, 2) == [3, 4, 5]
    assert find_descendants(parents, 5) == []
    assert find_descendants(parents, 7) == []


def test_this_process_is_read_and_a_missing_one_named() -> None:
    usage = read_usage(os.getpid())
    assert (usage.pid, usage.parent_pid) == (os.getpid(), os.getppid())
    assert usage.rss_bytes > 0
    with pytest.raises(ProcessGone, match="4194305"):
        read_usage(4_194_305)
