"""Waits for replies: each ends once, in time, and there are never too many."""

import asyncio
import os
import threading

import pytest

from bus import replies
from bus.errors import BusUnavailable
from bus.protocol import Incoming
from bus.replies import Replies

pytestmark = pytest.mark.anyio


def reply_to(subject):
    return Incoming(subject, b"answer")


async def test_a_reply_reaches_who_asked_and_only_the_first_one(collect):
    waits, one, two = Replies("test"), collect(), collect()
    first = waits.open(one, "a", 30.0)
    waits.open(two, "b", 30.0)
    for _ in range(2):
        waits.take(reply_to(first))
    assert one.items == [reply_to(first)]
    assert two.items == []
    assert len(waits) == 1


async def test_replies_to_nobody_are_dropped(collect):
    waits, got = Replies("test"), collect()
    reply = waits.open(got, "a", 30.0)
    waits.close(reply)
    waits.close(reply)
    for subject in (reply, waits.new_inbox(), "", "_INBOX", f"{reply}.x"):
        waits.take(reply_to(subject))
    assert got.items == []


async def test_a_wait_ends_in_time_and_others_go_on(collect):
    waits, short, long = Replies("test"), collect(), collect()
    late = waits.open(short, "a.b", 0.01)
    reply = waits.open(long, "c", 30.0)
    (error,) = await short.wait(1)
    assert isinstance(error, BusUnavailable)
    assert "a.b: no answer within 0.01 s" in str(error)
    waits.take(reply_to(late))
    waits.take(reply_to(reply))
    assert len(short.items) == len(long.items) == 1


async def test_a_reply_that_came_while_this_process_stood_still_is_in_time(collect):
    waits, got = Replies("test"), collect()
    reply = waits.open(got, "a", 0.06)
    reading, writing = os.pipe()
    loop = asyncio.get_running_loop()
    loop.add_reader(reading, lambda: waits.take(reply_to(reply)))
    os.write(writing, b"x")
    threading.Event().wait(0.2)  # on purpose: time passes, and the event loop does nothing
    assert await got.wait(1) == [reply_to(reply)]
    loop.remove_reader(reading)
    os.close(reading)
    os.close(writing)


async def test_a_lost_connection_ends_every_wait_and_new_ones_may_begin_meanwhile(collect):
    waits, got = Replies("test"), collect()

    def ask_again(answer):
        got(answer)
        waits.open(got, "again", 30.0)

    for _ in range(3):
        waits.open(ask_again, "a", 30.0)
    waits.fail_all("lost")
    assert [str(error) for error in await got.wait(3)] == ["lost"] * 3
    assert len(waits) == 3


async def test_waits_are_bounded(collect, monkeypatch):
    monkeypatch.setattr(replies, "MAX_WAITING", 3)
    waits, got = Replies("test"), collect()
    for _ in range(3):
        reply = waits.open(got, "a", 30.0)
    with pytest.raises(BusUnavailable, match="3 questions wait"):
        waits.open(got, "a", 30.0)
    waits.close(reply)
    waits.open(got, "a", 30.0)
