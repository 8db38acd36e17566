"""What the router reads of a job: its fields mean what the job's do, and nothing else is looked at."""

import msgspec
import pytest

from bus.codec import codec, encode
from bus.errors import Malformed
from bus.messages.base import pack_u32
from bus.messages.inference import GenerateJob, Hints, Stopping
from components.router.request import RoutedJob, to_request
from kv_events.hashing import block_hashes, salt_hash

JOB = GenerateJob(
    request_id="q",
    attempt=2,
    frontend="f",
    ticket=7,
    model="m",
    prompt=pack_u32(range(100)),
    output=pack_u32(range(30)),
    stopping=Stopping(max_tokens=1),
    tenant="t",
    cache_salt="s",
    session="c",
    hints=Hints(priority=-3, pin_ttl_s=60.0),
)


class Delivered:
    def __init__(self, payload, headers=None):
        self.payload = payload
        self.headers = headers


def routed(payload, headers=None):
    return to_request(codec(RoutedJob).decode(payload), Delivered(payload, headers), [16])


def test_every_field_is_one_of_the_job_with_the_same_default():
    theirs = {field.encode_name: field for field in msgspec.structs.fields(GenerateJob)}
    for field in msgspec.structs.fields(RoutedJob):
        assert field.required == theirs[field.encode_name].required
        if field.type is not memoryview:
            assert (field.type, field.default) == (theirs[field.encode_name].type, theirs[field.encode_name].default)
    assert RoutedJob.__struct_config__.tag == GenerateJob.__struct_config__.tag


def test_a_request_is_hashed_with_what_earlier_attempts_produced():
    request = routed(encode(JOB))
    tokens = [*range(100), *range(30)]
    assert request.num_tokens == 130
    assert list(request.chains[16]) == block_hashes(tokens[:-1], 16, salt_hash("m", "s"))
    assert (request.key, request.tenant, request.session, request.priority) == ("q:2", "t", "c", -3)


def test_a_request_without_output_is_its_prompt():
    request = routed(encode(msgspec.structs.replace(JOB, output=b"")))
    assert request.num_tokens == 100
    assert list(request.chains[16]) == block_hashes(range(99), 16, salt_hash("m", "s"))


def test_what_routing_does_not_need_is_the_workers_business():
    job = msgspec.msgpack.decode(encode(JOB))
    job.update(sampling="nonsense", stopping=None, unheard_of=[1, {"a": b""}])
    assert routed(encode(job)).num_tokens == 130


@pytest.mark.parametrize(
    "change", [{"prompt": "text"}, {"prompt": [1]}, {"ticket": -1}, {"type": "cancel"}, {"latency_class": "vip"}]
)
def test_what_routing_needs_is_checked(change):
    with pytest.raises(Malformed):
        routed(encode({**msgspec.msgpack.decode(encode(JOB)), **change}))


@pytest.mark.parametrize(
    ("headers", "lifetime_s"),
    [
        (None, None),
        ({}, None),
        ({"Nats-TTL": "30"}, 30),
        ({"Nats-TTL": "never"}, None),
        ({"Nats-TTL": "-1"}, None),
        ({"Nats-TTL": "9" * 400}, None),
        ({"Nats-TTL": "\u0663"}, None),
    ],
)
def test_a_lane_keeps_a_job_as_long_as_its_owner_waits(headers, lifetime_s):
    assert routed(encode(JOB), headers).origin.lifetime_s == lifetime_s
