"""What is kept for the next connection, and what is not."""

import pytest

from bus import outbox, wire
from bus.errors import BusUnavailable
from bus.outbox import Outbox


@pytest.fixture
def box():
    return Outbox()


def test_commands_leave_in_order_and_wake_the_sender_once(box):
    box.put(b"a", b"b")
    box.put(b"c")
    assert box.wake.is_set()
    assert box.take() == [b"a", b"b", b"c"]
    assert not box.wake.is_set()
    assert box.take() == []


def test_without_a_connection_little_is_kept(box):
    box.put(bytes(outbox.DOWN_BYTES))
    with pytest.raises(BusUnavailable):
        box.put(b"x")
    box.open(is_same_server=True)
    box.put(b"x")
    with pytest.raises(BusUnavailable):
        box.put(bytes(outbox.UP_BYTES))
    assert len(box.take()) == 2
    box.put(bytes(outbox.UP_BYTES))


def test_small_commands_pass_a_full_buffer(box):
    box.put(bytes(outbox.DOWN_BYTES))
    box.put_small(wire.PONG)
    assert box.take()[-1] == wire.PONG


def test_a_new_connection_gets_no_old_pings(box):
    for command in (wire.PING, b"PUB a  0\r\n\r\n", wire.PONG):
        box.put(command)
    box.open(is_same_server=True)
    assert box.wake.is_set()
    assert box.take() == [b"PUB a  0\r\n\r\n"]


def test_another_server_gets_no_old_acknowledgements(box):
    ack = wire.ack("$JS.ACK.S.C.1.1.1.1.0", b"+ACK")
    looks_like_one = bytes(ack)
    for is_same_server in (True, False):
        box.put_small(ack)
        box.put(looks_like_one)
        box.open(is_same_server=is_same_server)
        assert box.take() == ([ack, looks_like_one] if is_same_server else [looks_like_one])
