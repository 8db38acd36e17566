"""The embedded server's configuration and version."""

import re

import pytest

from bus import resources
from bus.errors import BadConfig
from bus.server import parse_version, prepare
from bus.server_config import Accounts, Cluster, Guard, render, render_cluster, render_guard

VALUES = {
    "name": "n",
    "host": "127.0.0.1",
    "port": 1,
    "monitor_port": 2,
    "store_dir": "/s",
    "memory_bytes": 3,
    "file_bytes": 4,
    "access": "open",
    "routes": "single",
}
FILES = {"tls_cert": "/c", "tls_key": "/k", "tls_ca": "/ca", "route_cert": "/rc", "route_key": "/rk"}


def test_the_template_is_filled_completely():
    text = render(resources.read_text("nats", "server.conf"), VALUES)
    assert not re.search(r"\$(?!SYS\b)", text)
    for line in ('listen: "127.0.0.1:1"', 'http: "127.0.0.1:2"', 'write_deadline: "2s"', "max_payload: 8MB"):
        assert line in text


def test_whoever_may_connect_is_said_in_a_file_of_its_own():
    text = render(resources.read_text("nats", "open.conf"), {})
    assert "no_auth_user: busway" in text
    assert not re.search(r"\$(?!SYS\b)", text)
    guard = Guard(accounts=Accounts("op.e.r", "ASYS", {"ASYS": "s.y.s"}), **FILES)
    text = render_guard(resources.read_text("nats", "secure.conf"), guard)
    for line in ('operator: "op.e.r"', "system_account: ASYS", '  ASYS: "s.y.s"', 'cert_file: "/c"'):
        assert line in text
    assert "no_auth_user" not in text


def test_a_token_cannot_break_out_of_its_quotes():
    guard = Guard(accounts=Accounts("o", "A", {"A": 'x"'}), **FILES)
    with pytest.raises(BadConfig, match="token"):
        render_guard("${tokens}", guard)


def test_an_open_server_listens_on_this_machine_only(tmp_path):
    with pytest.raises(BadConfig, match="--secure"):
        prepare(str(tmp_path), host="0.0.0.0")


def test_brokers_of_a_cluster_speak_tls_to_each_other_where_clients_do():
    template = resources.read_text("nats", "cluster.conf")
    cluster = Cluster(name="a", port=6222, routes=("b:6222", "[::1]:6223"))
    plain = render_cluster(template, cluster, None)
    assert 'routes: ["nats://b:6222", "nats://[::1]:6223"]' in plain
    assert "tls {" not in plain
    guard = Guard(accounts=Accounts("o", "A", {}), **FILES)
    guarded = render_cluster(template, cluster, guard)
    for line in ('"tls://b:6222"', "verify: true", 'cert_file: "/rc"', 'key_file: "/rk"', 'ca_file: "/ca"'):
        assert line in guarded


@pytest.mark.parametrize("route", ["b", "b:x", 'b:1"', "b:1, x:2", "nats://b:1", "u:p@b:1", ""])
def test_an_address_of_a_peer_is_host_and_port(route):
    with pytest.raises(BadConfig, match=r"up\.peers"):
        render_cluster("${routes}", Cluster(name="a", port=1, routes=(route,)), None)


def test_open_servers_take_routes_on_this_machine_only(tmp_path):
    with pytest.raises(BadConfig, match="--secure"):
        prepare(str(tmp_path), cluster=Cluster(name="a", host="0.0.0.0", port=1, routes=("b:1",)))


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
