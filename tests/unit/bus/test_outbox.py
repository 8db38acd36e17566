"""What is kept for the next connection, and what is not."""

import anyio.lowlevel
import pytest

from bus import outbox, wire
from bus.errors import BusUnavailable
from bus.outbox import Outbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def box():
    return Outbox()


@pytest.fixture
def sent():
    return []


@pytest.fixture
def connect(box, sent):
    def connect(*, keeps_answers=True):
        box.open(lambda: sent.append(box.take()), keeps_answers=keeps_answers)

    return connect


async def turn():
    """Let the event loop call what it was asked to."""
    for _ in range(3):
        await anyio.lowlevel.checkpoint()


async def test_commands_of_one_turn_are_sent_together_and_in_order(box, sent, connect):
    connect()
    box.put(b"a", b"b")
    box.put_late(b"c")
    box.put(b"d")
    assert sent == []
    await turn()
    assert sent == [[b"a", b"b", b"c", b"d"]]
    box.put(b"e")
    await turn()
    assert sent[1:] == [[b"e"]]


async def test_a_late_command_goes_with_the_next_one(box, sent, connect):
    connect()
    box.put_late(b"a")
    await turn()
    assert sent == []
    box.put(b"b")
    await turn()
    assert sent == [[b"a", b"b"]]


async def test_a_late_command_goes_alone_when_nothing_else_does(box, sent, connect, eventually):
    connect()
    box.put_late(b"a")
    await eventually(lambda: sent == [[b"a"]])


async def test_a_burst_that_leaves_late_commands_only_sends_nothing_at_once(box, sent, connect, eventually):
    connect()
    box.hold()
    box.put_late(b"a")
    box.release()
    await turn()
    assert sent == []
    box.hold()
    box.put_late(b"b")
    box.put(b"c")
    assert sent == []
    box.release()
    assert sent == [[b"a", b"b", b"c"]]
    box.hold()
    box.put_late(b"d")
    box.release()
    await eventually(lambda: sent[1:] == [[b"d"]])


async def test_while_a_burst_is_read_nothing_is_sent(box, sent, connect):
    connect()
    box.hold()
    box.put(b"a")
    box.put_late(b"b")
    await turn()
    assert sent == []
    assert box.take() == [b"a", b"b"]
    box.put(b"c")
    await turn()
    assert sent == [[b"c"]]


async def test_what_is_put_while_there_is_no_connection_waits_for_the_next(box, sent, connect):
    connect()
    box.put_late(b"a")
    box.close()
    box.put(b"b")
    await turn()
    assert sent == []
    connect()
    await turn()
    assert sent == [[b"a", b"b"]]


def test_without_a_connection_little_is_kept(box, connect):
    box.put(bytes(outbox.DOWN_BYTES))
    with pytest.raises(BusUnavailable):
        box.put(b"x")


async def test_with_a_connection_more_is_kept(box, connect):
    box.put(bytes(outbox.DOWN_BYTES))
    connect()
    box.put(b"x")
    with pytest.raises(BusUnavailable):
        box.put(bytes(outbox.UP_BYTES))
    assert len(box.take()) == 2
    box.put(bytes(outbox.UP_BYTES))


def test_small_commands_pass_a_full_buffer(box):
    box.put(bytes(outbox.DOWN_BYTES))
    box.put_small(wire.PONG)
    assert box.take()[-1] == wire.PONG


async def test_a_new_connection_gets_no_old_pings(box, connect):
    for command in (wire.PING, b"PUB a  0\r\n\r\n", wire.PONG):
        box.put(command)
    connect()
    assert box.take() == [b"PUB a  0\r\n\r\n"]


async def test_another_server_gets_no_old_acknowledgements(box, connect):
    ack = wire.ack("$JS.ACK.S.C.1.1.1.1.0", b"+ACK")
    looks_like_one = bytes(ack)
    for keeps_answers in (True, False):
        box.put_small(ack)
        box.put(looks_like_one)
        connect(keeps_answers=keeps_answers)
        assert box.take() == ([ack, looks_like_one] if keeps_answers else [looks_like_one])
