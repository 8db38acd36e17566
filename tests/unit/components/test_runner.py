"""What becomes of a message is decided by the error's class, and a durable finds its stream."""

import pytest

from bus.component import Context, describe
from bus.errors import BadConfig, BusUnavailable, Malformed, Permanent
from bus.messages.inference import RequestUsage
from bus.subjects import Subjects
from components.runner import Fate, covers, decide_fate, find_stream, readable_streams


class Reader:
    subject = "usage.v1.*.acme"
    durable = "reader"

    async def handle(self, message: RequestUsage, context: Context) -> None: ...


class Thief(Reader):
    subject = "work.v1.>"


@pytest.mark.parametrize(
    ("error", "is_durable", "num_delivered", "fate"),
    [
        (None, True, 1, Fate.HANDLED),
        (None, False, 1, Fate.HANDLED),
        (BusUnavailable("x"), True, 1, Fate.RETRIED),
        (BusUnavailable("x"), True, 1000, Fate.RETRIED),
        (Malformed("x"), True, 1, Fate.BURIED),
        (Permanent("x"), True, 1, Fate.BURIED),
        (ValueError("x"), True, 1, Fate.RETRIED),
        (ValueError("x"), True, 4, Fate.RETRIED),
        (ValueError("x"), True, 5, Fate.BURIED),
        (TimeoutError(), True, 5, Fate.BURIED),
        (BusUnavailable("x"), False, 1, Fate.FAILED),
        (Malformed("x"), False, 1, Fate.FAILED),
    ],
)
def test_fate(error: Exception | None, is_durable: bool, num_delivered: int, fate: Fate) -> None:
    assert decide_fate(error, is_durable, num_delivered, max_deliver=5) is fate


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("usage.v1.>", "usage.v1.>", True),
        ("usage.v1.>", "usage.v1.*.acme", True),
        ("usage.v1.>", "usage.v1", False),
        ("usage.v1.*", "usage.v1.>", False),
        ("usage.v1.*", "usage.v1.a", True),
        ("usage.v1.*", "usage.v1.a.b", False),
        ("usage.v1.a", "usage.v1.*", False),
        ("usage.*.a", "usage.v1.a", True),
        (">", "anything.>", True),
        ("usage.v1.>", ">", False),
        ("usage.v1.>", "*.v1.>", False),
    ],
)
def test_covers(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


def test_a_durable_reads_the_stream_that_carries_its_subject() -> None:
    assert find_stream(describe(Reader), readable_streams(Subjects("fleet"))) == "USAGE"


def test_a_durable_on_a_work_queue_is_refused_and_told_what_there_is() -> None:
    streams = r"DEAD \(dead\.v1\.>\), KV \(kv\.v1\.>, tier\.v1\.>\), USAGE \(usage\.v1\.>\)"
    with pytest.raises(BadConfig, match=rf"'work\.v1\.>'.*{streams}"):
        find_stream(describe(Thief), readable_streams(Subjects()))
