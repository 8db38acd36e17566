"""What was sent can be sent again for a while, and never with a gap."""

from components.worker.sent import MAX_BATCHES, MAX_BYTES, Sent


def test_batches_come_again_from_a_number_on() -> None:
    sent = Sent()
    for payload in (b"0", b"1", b"2"):
        sent.add(payload)
    assert list(sent.since(1)) == [b"1", b"2"]
    assert list(sent.since(3)) == list(sent.since(99)) == []


def test_what_is_forgotten_is_not_answered_in_part() -> None:
    sent = Sent()
    for _ in range(MAX_BATCHES + 3):
        sent.add(b"x")
    assert list(sent.since(2)) == []
    assert len(list(sent.since(3))) == MAX_BATCHES


def test_memory_is_bounded_in_bytes() -> None:
    sent = Sent()
    for _ in range(5):
        sent.add(bytes(MAX_BYTES // 2))
    assert len(list(sent.since(3))) == 2
    sent.add(bytes(MAX_BYTES + 1))
    assert list(sent.since(5)) == []
    assert sent.next_seq == 6
