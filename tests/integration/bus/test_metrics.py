"""Processes without an HTTP door of their own can show their metrics."""

import socket
import urllib.request

import pytest

from bus.errors import BadConfig
from bus.metrics import expose


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
