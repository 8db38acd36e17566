"""Pauses between connection attempts, and what a log may say of an address."""

import pytest

from bus.config import BusConfig
from bus.errors import BadConfig
from bus.link import Link, reconnect_delay_s, redact
from bus.subjects import Subjects


def test_pauses_grow_to_a_bound_and_spread():
    first = [reconnect_delay_s(0, jitter) for jitter in (0.0, 1.0)]
    assert first == [pytest.approx(0.025), pytest.approx(0.075)]
    assert reconnect_delay_s(10**9, 1.0) <= 0.75
    pauses = [reconnect_delay_s(attempt, 0.5) for attempt in range(30)]
    assert pauses == sorted(pauses)


def test_an_address_is_told_without_its_password():
    assert redact("nats://user:pa@ss@host:4222") == "nats://host:4222"
    assert redact("nats://host:4222") == "nats://host:4222"


@pytest.mark.parametrize("url", ["http://host", "host:4222", "ws://host"])
def test_other_protocols_are_refused(url):
    with pytest.raises(BadConfig, match="nats:"):
        Link(BusConfig(url=url), Subjects("a"), "test")
