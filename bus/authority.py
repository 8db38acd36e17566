"""Pure. Who vouches for the processes of one system: an operator, two accounts, and a signing key for each role.

A role's key can only sign users with that role's rights, which stand in the account's token: the server holds them to
it and needs no list of users. `bus.permissions` says what the rights are; those of a new version hold from the next
start of the server on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from bus.identity import write_credentials
from bus.jwt import sign_claims
from bus.nkeys import Kind, new_pair, read_seed
from bus.permissions import Rights, rights, worker_tags
from bus.roles import NAME_TAG, ROLE_TAG, ROLES, BusRole
from bus.server_config import Accounts
from bus.streams import Declared
from bus.subjects import Subjects

_UNLIMITED = -1
_USER_LIMITS = ("subs", "data", "payload")
_SYSTEM_LIMITS = (*_USER_LIMITS, "imports", "exports", "conn", "leaf")
_ACCOUNT_LIMITS = (*_SYSTEM_LIMITS, "mem_storage", "disk_storage", "streams", "consumer")
_TOLD = ("CONNECT", "DISCONNECT")


class Authority(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The seeds. Whoever has them can be anybody: they stay with who starts the server."""

    operator: str
    system: str
    account: str
    roles: dict[str, str]
    """By role."""
    revoked: dict[str, int] = {}
    """Public keys of users, and until when (unix seconds) what was signed for them is void."""
    issued: dict[str, str] = {}
    """Public keys of users who got their credentials by hand, by name."""

    def __repr__(self) -> str:
        return "Authority(...)"


class Minted(msgspec.Struct, frozen=True):
    """New credentials."""

    name: str
    public: str
    content: str
    """Of the credentials file."""


def new_authority() -> Authority:
    """Return an authority with new keys."""
    return Authority(
        operator=new_pair(Kind.OPERATOR).seed,
        system=new_pair(Kind.ACCOUNT).seed,
        account=new_pair(Kind.ACCOUNT).seed,
        roles={role: new_pair(Kind.ACCOUNT).seed for role in ROLES},
    )


def with_all_roles(authority: Authority) -> Authority:
    """Return the authority with keys for roles that are newer than it."""
    missing = {role: new_pair(Kind.ACCOUNT).seed for role in ROLES if role not in authority.roles}
    return msgspec.structs.replace(authority, roles={**authority.roles, **missing}) if missing else authority


def make_accounts(authority: Authority, subjects: Subjects, declared: Sequence[Declared], *, now: int) -> Accounts:
    """Return the tokens for a server that serves a namespace; `now` in unix seconds."""
    operator, system, account = (read_seed(seed) for seed in (authority.operator, authority.system, authority.account))
    roles = [_scope(role, read_seed(authority.roles[role]).public, rights(role, subjects, declared)) for role in ROLES]
    told: dict[str, Any] = {
        "exports": [
            {"name": word, "subject": f"$SYS.ACCOUNT.*.{word}", "type": "stream", "account_token_position": 3}
            for word in _TOLD
        ],
        "limits": {**dict.fromkeys(_SYSTEM_LIMITS, _UNLIMITED), "wildcards": True},
    }
    served: dict[str, Any] = {
        "imports": [
            {
                "name": word,
                "subject": f"$SYS.ACCOUNT.{account.public}.{word}",
                "account": system.public,
                "local_subject": f"server.{word.lower()}",
                "type": "stream",
            }
            for word in _TOLD
        ],
        "limits": {**dict.fromkeys(_ACCOUNT_LIMITS, _UNLIMITED), "wildcards": True},
        "signing_keys": roles,
        "revocations": authority.revoked,
        # A user that the account itself signed has no role.
        "default_permissions": {"pub": {"deny": [">"]}, "sub": {"deny": [">"]}},
    }
    return Accounts(
        # The same whenever it is made: a server that runs takes new accounts, but no new operator.
        operator=sign_claims(
            "operator", "busway", operator.public, {"system_account": system.public}, operator, issued_at=0
        ),
        system_id=system.public,
        tokens={
            system.public: sign_claims("account", "SYS", system.public, told, operator, issued_at=now),
            account.public: sign_claims(
                "account", subjects.namespace.upper(), account.public, served, operator, issued_at=now
            ),
        },
    )


def mint(
    authority: Authority, role: BusRole, name: str, *, now: int, expires_at: int = 0, models: Iterable[str] = ()
) -> Minted:
    """Return credentials for one process of a role; `models` are the slugs that a worker may serve."""
    key, issuer = new_pair(Kind.USER), read_seed(authority.roles[role])
    tags = [f"{NAME_TAG}{name}", f"{ROLE_TAG}{role}", *(worker_tags(name, models) if role == "worker" else ())]
    body = {"issuer_account": read_seed(authority.account).public, "tags": tags}
    token = sign_claims("user", name, key.public, body, issuer, issued_at=now, expires_at=expires_at)
    return Minted(name, key.public, write_credentials(token, key))


def revoke(authority: Authority, name: str, *, now: int) -> Authority:
    """Return the authority without the credentials that were issued under a name; raise `KeyError`."""
    issued = dict(authority.issued)
    revoked: Mapping[str, int] = {**authority.revoked, issued.pop(name): now}
    return msgspec.structs.replace(authority, issued=issued, revoked=dict(revoked))


def _scope(role: BusRole, public: str, given: Rights) -> dict[str, Any]:
    template: dict[str, Any] = {
        "pub": {"allow": list(given.publish)} if given.publish else {"deny": [">"]},
        "sub": {"allow": list(given.subscribe)},
        **dict.fromkeys(_USER_LIMITS, _UNLIMITED),
    }
    if given.max_responses:
        template["resp"] = {"max": given.max_responses, "ttl": int(given.responses_s * 1e9)}
    return {"kind": "user_scope", "key": public, "role": role, "template": template}
