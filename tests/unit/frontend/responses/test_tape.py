"""Events of a response in the background: everybody hears each of them once and in order, whenever they come."""

from bus.messages.responses import StoredResponse
from frontend.errors import ShuttingDown
from frontend.responses.tape import MAX_LISTENERS, MAX_TAPE_BYTES, Heard, Tape, ending, is_ending


def event(number: int, kind: str = "response.output_text.delta") -> bytes:
    return b'event: %b\ndata: {"sequence_number":%d}\n\n' % (kind.encode(), number)


def test_who_comes_late_or_again_hears_the_rest() -> None:
    tape, early, late = Tape(), list[bytes](), list[bytes]()
    tape.listen(-1, early.append)
    tape.send(event(0), event(1), event(2))
    stop = tape.listen(0, late.append)
    tape.send(event(3), b"", b"")
    stop()
    stop()
    tape.close(event(4), event(5, "response.completed"))
    after: list[bytes] = []
    tape.listen(3, after.append)
    assert early == [*map(event, range(5)), event(5, "response.completed"), b""]
    assert late == [event(1), event(2), event(3)]
    assert after == [event(4), event(5, "response.completed"), b""]
    assert [is_ending(each) for each in after[:2]] == [False, True]


def test_a_failure_before_anything_was_told_is_kept_as_an_error() -> None:
    heard: list[bytes] = []
    tape, begun, error = Tape(), Tape(), ShuttingDown("over")
    tape.listen(-1, heard.append)
    tape.fail(error, event(0, "response.failed"))
    begun.send(event(0), b"", b"")
    begun.fail(error, event(1, "response.failed"))
    begun.listen(0, heard.append)
    assert (tape.error, begun.error) == (error, None)
    assert heard == [b"", event(1, "response.failed"), b""]


def test_a_tape_and_its_listeners_are_bounded() -> None:
    tape, heard, one_more = Tape(), list[bytes](), list[bytes]()
    large = b"event: x\ndata: " + b"x" * (MAX_TAPE_BYTES // 4) + b"\n\n"
    for _ in range(8):
        tape.send(large, b"", b"")
    tape.listen(-1, heard.append)
    assert 2 <= len(heard) <= 4
    tape.listen(6, one_more.append)
    assert one_more == [large]
    for _ in range(MAX_LISTENERS - 2):
        tape.listen(7, lambda _: None)
    tape.listen(7, one_more.append)
    assert one_more == [large, b""]


def test_a_stored_response_has_one_last_event() -> None:
    stored = StoredResponse(tenant="t", frontend="f", status="cancelled", input=b"[]", response=b'{"id":"r"}')
    shown = ending(stored, 9)
    assert shown.startswith(b"event: response.incomplete\n")
    assert b'"sequence_number":9,"response":{"id":"r"}}\n\n' in shown


def test_what_was_heard_is_passed_on_in_order_and_bounded() -> None:
    heard, slow = Heard(), Heard()
    for told in (event(0), event(1), b"", event(2)):
        heard.take(told)
    assert (heard.is_over, heard.next(), heard.next(), heard.is_empty) == (True, event(0), event(1), True)
    num_taken = 0
    while not slow.is_over:
        slow.take(b"x" * (MAX_TAPE_BYTES // 8))
        num_taken += 1
    assert num_taken == 17
