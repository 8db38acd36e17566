"""The embedded server's configuration and version."""

import re

import pytest

from bus import resources
from bus.errors import BadConfig
from bus.server import parse_version, prepare
from bus.server_config import Accounts, Guard, render, render_guard

VALUES = {
    "name": "n",
    "host": "127.0.0.1",
    "port": 1,
    "monitor_port": 2,
    "store_dir": "/s",
    "memory_bytes": 3,
    "file_bytes": 4,
    "access": "open",
}


def test_the_template_is_filled_completely():
    text = render(resources.read_text("nats", "server.conf"), VALUES)
    assert not re.search(r"\$(?!SYS\b)", text)
    for line in ('listen: "127.0.0.1:1"', 'http: "127.0.0.1:2"', 'write_deadline: "2s"', "max_payload: 8MB"):
        assert line in text


def test_whoever_may_connect_is_said_in_a_file_of_its_own():
    text = render(resources.read_text("nats", "open.conf"), {})
    assert "no_auth_user: busway" in text
    assert not re.search(r"\$(?!SYS\b)", text)
    guard = Guard(accounts=Accounts("op.e.r", "ASYS", {"ASYS": "s.y.s"}), tls_cert="/c", tls_key="/k", tls_ca="/ca")
    text = render_guard(resources.read_text("nats", "secure.conf"), guard)
    for line in ('operator: "op.e.r"', "system_account: ASYS", '  ASYS: "s.y.s"', 'cert_file: "/c"'):
        assert line in text
    assert "no_auth_user" not in text


def test_a_token_cannot_break_out_of_its_quotes():
    guard = Guard(accounts=Accounts("o", "A", {"A": 'x"'}), tls_cert="/c", tls_key="/k", tls_ca="/ca")
    with pytest.raises(BadConfig, match="token"):
        render_guard("${tokens}", guard)


def test_an_open_server_listens_on_this_machine_only(tmp_path):
    with pytest.raises(BadConfig, match="--secure"):
        prepare(str(tmp_path), host="0.0.0.0")


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
