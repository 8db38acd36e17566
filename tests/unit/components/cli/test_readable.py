"""A tapped message is one line that a person reads, whatever its bytes are."""

import json
import random

import msgspec
import pytest

from bus.codec import encode
from bus.messages.base import pack_u32, pack_u64
from bus.messages.fleet import DeadLetter
from bus.messages.inference import Accepted, Cancel, Finished, GenerateJob, StepBatch, Stopping
from bus.messages.kv import BlocksStored, KvBatch
from bus.protocol import Incoming
from bus.subjects import Subjects
from components.cli.readable import to_json, to_line

SUBJECTS = Subjects()
IDS = pack_u32([1, 2, 3])


def line(subject: str, payload: bytes, reply: str = "") -> str:
    return to_line(1.5, Incoming(subject=subject, payload=payload, reply=reply), SUBJECTS)


def test_a_step_batch_shows_columns_as_counts() -> None:
    batch = StepBatch(
        worker="w-1",
        seq=7,
        tickets=IDS,
        offsets=IDS,
        tokens=IDS,
        accepted=[Accepted(4)],
        finished=[Finished(5, 12, "stop")],
    )
    text = line(SUBJECTS.out("f-1", "w-1"), encode(batch))
    assert "busway.out.v1.f-1.w-1" in text
    assert "StepBatch worker=w-1 seq=7 tickets=u32[3] offsets=u32[3] tokens=u32[3]" in text
    assert "accepted=[(ticket=4)]" in text
    assert "finished=[(ticket=5 num_tokens=12 reason=stop)]" in text
    assert "failed" not in text


def test_a_prompt_is_counted_not_shown() -> None:
    job = GenerateJob(
        request_id="r", frontend="f", ticket=1, model="m", prompt=IDS, stopping=Stopping(max_tokens=4), tenant="acme"
    )
    text = line(SUBJECTS.work("m", "both", "any", "standard"), encode(job))
    assert (
        "GenerateJob request_id=r frontend=f ticket=1 model=m prompt=u32[3] stopping=(max_tokens=4) tenant=acme" in text
    )


def test_parts_of_a_batch_are_decoded_and_unknown_ones_marked() -> None:
    events = [
        msgspec.Raw(encode(BlocksStored(parent_hash=9, block_hashes=pack_u64([1, 2])))),
        msgspec.Raw(encode(["new_kind", 1])),
    ]
    text = line(SUBJECTS.kv("m", "w"), encode(KvBatch(worker="w", epoch=1, first_seq=0, events=events)))
    assert "[BlocksStored parent_hash=9 block_hashes=u64[2], malformed: " in text


def test_payloads_of_dead_letters_are_counted() -> None:
    letter = DeadLetter(subject="s", code="malformed", reason="bad", payload=b"\x00" * 9, died_at=1.0)
    assert "payload=bytes[9]" in line(SUBJECTS.dead("usage"), encode(letter))


def test_keys_of_buckets_are_decoded_and_deletions_are_empty() -> None:
    assert "(" in line("$KV.BUSWAY_REG.worker.w-1", b"")
    assert "malformed: " in line("$KV.BUSWAY_REG.worker.w-1", b"\xc1")


def test_json_passes_through_and_replies_are_named() -> None:
    text = line(SUBJECTS.ask("m", "acme"), b'{"messages": [{"role": "user"}], "max_tokens": 5}', "_INBOX.x")
    assert "-> _INBOX.x" in text
    assert "(messages=[(role=user)] max_tokens=5)" in text


@pytest.mark.parametrize(
    "payload", [b"\xc1", b"\x91" * 100_000, b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": "\x1b[2J"}']
)
def test_hostile_bytes_are_marked_on_every_subject(payload: bytes) -> None:
    for subject in (SUBJECTS.out("f", "w"), SUBJECTS.ctl("w"), SUBJECTS.ask("m", "t"), "elsewhere", "a\x1b[2Jb"):
        text = line(subject, payload)
        assert "\n" not in text
        assert "\x1b" not in text
        assert len(text) < 2000


def test_random_bytes_never_raise() -> None:
    rng = random.Random(3)
    for _ in range(300):
        line(SUBJECTS.out("f", "w"), rng.randbytes(rng.randrange(60)))


def test_json_lines_are_json() -> None:
    cancel = encode(Cancel(frontend="f", tickets=IDS))
    good = json.loads(to_json(1.5, Incoming(subject=SUBJECTS.ctl("w"), payload=cancel), SUBJECTS))
    assert good == {
        "at": 1.5,
        "subject": "busway.ctl.v1.w",
        "size": len(cancel),
        "message": {"type": "Cancel", "frontend": "f", "tickets": "u32[3]"},
    }
    assert "malformed" in json.loads(to_json(1.5, Incoming(subject=SUBJECTS.ctl("w"), payload=b"\xc1"), SUBJECTS))
