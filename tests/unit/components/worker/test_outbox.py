"""Outbox: every row goes out once and in order, and ends come after the rows that they end."""

from bus.codec import encode
from bus.messages.base import unpack_u32
from bus.messages.inference import Accepted, Embedding, Failed, Finished, PromptLogprobs, TokenLogprobs
from components.engines import MAX_PROMPT_ROWS
from components.worker.outbox import MAX_BATCH_ENDS, MAX_BATCH_ROWS, MAX_BATCH_VECTORS, MAX_ROWS, Outbox


def test_a_batch_holds_what_waits_and_leaves_when_sent() -> None:
    outbox = Outbox("f-1")
    assert outbox.is_empty
    outbox.accepted.append(Accepted(7))
    outbox.append(7, 0, 42)
    outbox.finished.append(Finished(7, 1, "length"))
    batch = outbox.next_batch("w-1")
    assert outbox.next_batch("w-1") == batch, "asking again changes nothing"
    assert (batch.worker, batch.seq) == ("w-1", 0)
    assert list(unpack_u32(batch.tickets)) == [7]
    assert list(unpack_u32(batch.tokens)) == [42]
    assert batch.finished == [Finished(7, 1, "length")]
    outbox.mark_sent()
    assert outbox.is_empty
    assert outbox.next_batch("w-1").seq == 1
    assert batch.accepted == [Accepted(7)], "what was sent does not change any more"


def test_a_long_wait_goes_out_in_parts_with_the_ends_last() -> None:
    outbox = Outbox("f-1")
    num_rows = 2 * MAX_BATCH_ROWS + 5
    outbox.accepted.append(Accepted(1))
    for offset in range(num_rows):
        outbox.append(1, offset, offset % 50)
        if offset % 3 == 0:
            outbox.add_logprobs(TokenLogprobs(1, offset, -0.5))
    outbox.finished.append(Finished(1, num_rows, "stop"))
    outbox.failed.append(Failed(2, "x", "y", True))
    offsets: list[int] = []
    batches = []
    while not outbox.is_empty:
        batch = outbox.next_batch("w-1")
        rows = list(unpack_u32(batch.offsets))
        assert [entry.offset for entry in batch.logprobs] == [row for row in rows if row % 3 == 0]
        offsets += rows
        batches.append(batch)
        outbox.mark_sent()
    assert offsets == list(range(num_rows))
    assert [batch.seq for batch in batches] == [0, 1, 2]
    assert [len(batch.accepted) for batch in batches] == [1, 0, 0]
    assert [len(batch.finished) for batch in batches] == [0, 0, 1]
    assert [len(batch.failed) for batch in batches] == [0, 0, 1]


def test_giving_up_tells_every_ticket_once() -> None:
    outbox = Outbox("f-1")
    for row in range(MAX_ROWS + 1):
        outbox.append(row % 4, row // 4, 9)
    outbox.finished.append(Finished(3, 5, "stop"))
    outbox.accepted.append(Accepted(8))
    outbox.failed.append(Failed(9, "draining", "", True))
    assert outbox.is_overfull
    outbox.give_up(outbox.tickets_inside() | {5}, "bus_unavailable", "m")
    batch = outbox.next_batch("w-1")
    assert [entry.ticket for entry in batch.failed] == [9, 0, 1, 2, 3, 5, 8]
    assert not batch.tickets
    assert not batch.finished


def test_many_ends_go_out_in_parts() -> None:
    outbox = Outbox("f-1")
    for ticket in range(2 * MAX_BATCH_ENDS + 1):
        outbox.failed.append(Failed(ticket, "draining", "", True))
    told: list[int] = []
    while not outbox.is_empty:
        batch = outbox.next_batch("w-1")
        assert len(batch.failed) <= MAX_BATCH_ENDS
        told += [entry.ticket for entry in batch.failed]
        outbox.mark_sent()
    assert told == list(range(2 * MAX_BATCH_ENDS + 1))


def test_what_is_said_of_prompts_fits_and_comes_before_what_follows() -> None:
    outbox = Outbox("f-1")
    ids, logprobs = [2**31] * 20, [-0.1] * 20
    for piece in range(9):
        start = 1 + piece * MAX_PROMPT_ROWS
        rows = MAX_PROMPT_ROWS
        outbox.prompt_logprobs.append(PromptLogprobs(1, start, [-0.1] * rows, [ids] * rows, [logprobs] * rows))
    for ticket in range(2, 2 * MAX_BATCH_VECTORS + 3):
        outbox.embeddings.append(Embedding(ticket, bytes(4 * 8192)))
        outbox.finished.append(Finished(ticket, 0, "stop"))
    for offset in range(MAX_BATCH_ROWS):
        outbox.append(1, offset, 2**31)
        outbox.add_logprobs(TokenLogprobs(1, offset, -0.1, ids, logprobs))
    said, vectors, tokens, ended = [], [], [], []
    while not outbox.is_empty:
        batch = outbox.next_batch("w-1")
        assert len(encode(batch)) < 2**20
        said += [each.start for each in batch.prompt_logprobs]
        vectors += [each.ticket for each in batch.embeddings]
        tokens += list(unpack_u32(batch.offsets))
        ended += [each.ticket for each in batch.finished]
        assert len(said) == 9 or not tokens
        assert vectors[: len(ended)] == ended
        outbox.mark_sent()
    assert tokens == list(range(MAX_BATCH_ROWS))
    assert vectors == ended == list(range(2, 2 * MAX_BATCH_VECTORS + 3))
