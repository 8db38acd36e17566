"""How much a standing pull asks for."""

from hypothesis import given
from hypothesis import strategies as st

from bus.protocol import ConsumerSpec
from bus.queue import consumer_config, to_request


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_never_more_is_asked_for_than_was_granted(credit, requested):
    assert 0 <= to_request(credit, requested) <= max(0, credit - requested)


@given(st.integers(1, 10_000))
def test_something_is_asked_for_when_nothing_is(credit):
    assert to_request(credit, 0) == credit


@given(st.lists(st.integers(0, 4096), max_size=400))
def test_few_requests_wait_at_the_server_however_grants_come(grants):
    credit = requested = num_requests = 0
    for grant in grants:
        credit = max(credit, grant)
        if batch := to_request(credit, requested):
            requested += batch
            num_requests += 1
    assert num_requests <= 40


@given(st.integers(1, 500), st.integers(1, 500))
def test_all_that_was_granted_is_delivered_in_the_end(first, second):
    credit, requested, delivered = first, to_request(first, 0), 0
    credit = max(credit, second)
    requested += to_request(credit, requested)
    granted = credit
    while requested:
        requested -= 1
        credit -= 1
        delivered += 1
        requested += to_request(credit, requested)
    assert delivered == granted


def test_a_consumers_settings_are_in_nanoseconds():
    spec = ConsumerSpec(stream="WORK", name="n", filter_subject="a", ack_wait_s=0.5, inactive_s=2)
    config = consumer_config(spec, is_memory=True)
    assert (config["ack_wait"], config["inactive_threshold"]) == (500_000_000, 2_000_000_000)
    assert config["max_ack_pending"] == 20_000
    assert config["max_waiting"] == 4096
    assert config["mem_storage"]
