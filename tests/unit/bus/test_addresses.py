"""Addresses of brokers: read, told without passwords, tried again."""

import pytest

from bus.addresses import parse_urls, reconnect_delay_s, redact
from bus.errors import BadConfig


def test_pauses_grow_to_a_bound_and_spread():
    first = [reconnect_delay_s(0, jitter) for jitter in (0.0, 1.0)]
    assert first == [pytest.approx(0.025), pytest.approx(0.075)]
    assert reconnect_delay_s(10**9, 1.0) <= 0.75
    pauses = [reconnect_delay_s(attempt, 0.5) for attempt in range(30)]
    assert pauses == sorted(pauses)


def test_an_address_is_told_without_its_password():
    assert redact("nats://user:pa@ss@host:4222") == "nats://host:4222"
    assert redact("nats://host:4222") == "nats://host:4222"


def test_several_addresses_are_parted_by_commas():
    assert parse_urls("nats://a:1, tls://b:2,") == ["nats://a:1", "tls://b:2"]


@pytest.mark.parametrize("text", ["http://host", "host:4222", "ws://user:secret@host", "", " , "])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BadConfig, match="nats://") as caught:
        parse_urls(text)
    assert "secret" not in str(caught.value)
