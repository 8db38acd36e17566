"""All metrics keep to the names that dashboards rely on, and processes without a door can show them."""

import socket
import urllib.request

import pytest

from bus.errors import BadConfig
from bus.metrics import MALFORMED_MESSAGES, REGISTRY, expose, render


def test_every_name_has_our_prefix_and_a_base_unit() -> None:
    for metric in REGISTRY.collect():
        assert metric.name.startswith("busway_")
        assert metric.documentation.endswith(".")
        assert not metric.name.endswith(("_ms", "_milliseconds", "_kb", "_mb", "_us"))
        if metric.type == "histogram":
            assert metric.name.endswith(("_seconds", "_bytes", "_tokens"))


def test_what_is_counted_is_rendered() -> None:
    MALFORMED_MESSAGES.labels("out").inc(0)
    assert b'busway_malformed_messages_total{family="out"}' in render()


def test_a_process_without_a_door_can_show_its_metrics() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with expose(port), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"busway_" in answer.read()
        with pytest.raises(BadConfig, match=str(port)), expose(port):
            pass
    with expose(None):
        pass
