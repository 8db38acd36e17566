"""Pure. The configuration of nats-server, from the templates in `nats/`."""

import re
from collections.abc import Mapping
from string import Template

import msgspec

from bus.errors import BadConfig

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
    """Of whoever signed the certificate: for clients."""


def render(template: str, values: Mapping[str, str | int]) -> str:
    """Fill `${...}` of a configuration; raise `BadConfig` for values that would break out of quotes."""
    for key, value in values.items():
        _check(key, value)
    return _fill(template, values)


def render_guard(template: str, guard: Guard) -> str:
    """Fill in the configuration of a guarded server; raise `BadConfig` as `render` does."""
    tokens = [f'  {_check("key", key)}: "{_check("token", token)}"' for key, token in guard.accounts.tokens.items()]
    values = {
        "operator": guard.accounts.operator,
        "system_id": guard.accounts.system_id,
        "tls_cert": guard.tls_cert,
        "tls_key": guard.tls_key,
    }
    for key, value in values.items():
        _check(key, value)
    return _fill(template, {**values, "tokens": "\n".join(tokens)})


def _check(key: str, value: str | int) -> str | int:
    if not _PLAIN.match(str(value)):
        raise BadConfig(f"server.conf: {key} = {value!r} has a quote, backslash or control character")
    return value


def _fill(template: str, values: Mapping[str, str | int]) -> str:
    try:
        return Template(template).substitute(values)
    except (KeyError, ValueError) as error:
        raise BadConfig(f"nats/server.conf: {error}") from error
