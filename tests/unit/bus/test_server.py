"""The embedded server's configuration and version."""

import re

import pytest

from bus import resources
from bus.errors import BadConfig
from bus.server import parse_version, render

VALUES = {
    "name": "n",
    "host": "127.0.0.1",
    "port": 1,
    "monitor_port": 2,
    "store_dir": "/s",
    "memory_bytes": 3,
    "file_bytes": 4,
}


def test_the_template_is_filled_completely():
    text = render(resources.read_text("nats", "server.conf"), VALUES)
    assert not re.search(r"\$(?!SYS\b)", text)
    for line in ('listen: "127.0.0.1:1"', 'http: "127.0.0.1:2"', 'write_deadline: "2s"', "max_payload: 8MB"):
        assert line in text


def test_a_value_that_is_missing_is_named():
    with pytest.raises(BadConfig, match="nowhere"):
        render("${nowhere}", {})


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb", "a\x00"])
def test_a_value_cannot_break_out_of_its_quotes(value):
    with pytest.raises(BadConfig, match="store_dir"):
        render("${store_dir}", {"store_dir": value})


def test_versions_are_read():
    assert parse_version("nats-server: v2.15.1") == (2, 15, 1)
    assert parse_version("nats-server: v2.11.0-RC.2\n") == (2, 11, 0)
    with pytest.raises(BadConfig):
        parse_version("command not found")
