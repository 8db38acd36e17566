"""Pure. The configuration of nats-server, from the templates in `nats/`."""

import re
from collections.abc import Mapping
from string import Template

import msgspec

from bus.errors import BadConfig

_ROUTE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}\Z")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*\Z')


class Accounts(msgspec.Struct, frozen=True):
    """What a server is configured with; nothing of it is secret."""

    operator: str
    system_id: str
    tokens: dict[str, str]
    """By the account's public key."""


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a server let nobody in without credentials, and speak TLS: accounts, and paths of PEM files."""

    accounts: Accounts
    tls_cert: str
    tls_key: str
    tls_ca: str
    """Of whoever signed the certificates: for clients, and for the other servers of a cluster."""
    route_cert: str
    """What servers of one cluster show each other; nobody else has one of the kind."""
    route_key: str


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """What makes one of several servers that are a single broker: streams with copies outlive any one of them."""

    name: str
    """Of this server: unique, and the same whenever it starts."""
    host: str = "127.0.0.1"
    port: int
    """Where it takes routes of the others."""
    routes: tuple[str, ...]
    """Where the others do, as host:port; its own may be among them."""


def render(template: str, values: Mapping[str, str | int], lines: Mapping[str, str] | None = None) -> str:
    """Fill `${...}` of a configuration; raise `BadConfig` for values that would break out of quotes.

    `lines` are filled in as they are: made here, of values that were looked at.
    """
    checked = {key: _check(key, value) for key, value in values.items()}
    try:
        return Template(template).substitute(checked, **lines or {})
    except (KeyError, ValueError) as error:
        raise BadConfig(f"nats/server.conf: {error}") from error


def render_guard(template: str, guard: Guard) -> str:
    """Fill in the configuration of a guarded server; raise `BadConfig` as `render` does."""
    tokens = [f'  {_check("key", key)}: "{_check("token", token)}"' for key, token in guard.accounts.tokens.items()]
    values = {
        "operator": guard.accounts.operator,
        "system_id": guard.accounts.system_id,
        "tls_cert": guard.tls_cert,
        "tls_key": guard.tls_key,
    }
    return render(template, values, {"tokens": "\n".join(tokens)})


def render_cluster(template: str, cluster: Cluster, guard: Guard | None) -> str:
    """Fill in the configuration of one of several servers; raise `BadConfig` as `render` does."""
    for route in cluster.routes:
        if not _ROUTE.match(route):
            raise BadConfig(f"up.peers: {route!r}: write host:port, where the other broker takes routes")
    scheme = "tls" if guard else "nats"
    tls = ""
    if guard:
        files = {"cert_file": guard.route_cert, "key_file": guard.route_key, "ca_file": guard.tls_ca}
        lines = [f'    {key}: "{_check(key, value)}"' for key, value in files.items()]
        tls = "\n".join(["  tls {", *lines, "    verify: true", '    min_version: "1.2"', "    timeout: 2", "  }"])
    routes = ", ".join(f'"{scheme}://{route}"' for route in cluster.routes)
    return render(template, {"host": cluster.host, "port": cluster.port}, {"routes": routes, "tls": tls})


def _check(key: str, value: str | int) -> str | int:
    if not _PLAIN.match(str(value)):
        raise BadConfig(f"server.conf: {key} = {value!r} has a quote, backslash or control character")
    return value
