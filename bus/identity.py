"""Pure. Who a process is on the bus: a file of credentials, in NATS's own format, and what it says of its holder."""

import re
from typing import NamedTuple

from bus.errors import BadConfig
from bus.jwt import read_claims
from bus.nkeys import KeyPair, read_seed
from bus.roles import ROLE_TAG

_TOKEN = re.compile(r"-----BEGIN NATS USER JWT-----\s+([\w.=-]+)\s+-+END NATS USER JWT-+")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\s+([A-Z2-7]+)\s+-+END USER NKEY SEED-+")


class Identity(NamedTuple):
    """The holder of credentials. The server knows it by the token and lets it do what its role may."""

    name: str
    """Of this one process: its id on the bus, and a token of the subjects that only it may publish to."""
    role: str
    """Empty where another tool made the credentials."""
    token: str
    key: KeyPair
    expires_at: int
    """Unix seconds; 0: never."""


def write_credentials(token: str, key: KeyPair) -> str:
    """Return the content of a credentials file, as `nats --creds` takes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        "This file is a secret: whoever has it can do what its holder may.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
    )


def read_credentials(text: str, source: str) -> Identity:
    """Return who a credentials file makes its reader; raise `BadConfig` that names `source`, and no secret."""
    token, seed = _TOKEN.search(text), _SEED.search(text)
    if token is None or seed is None:
        raise BadConfig(f"{source} holds no NATS credentials: make them with `busway keys bus ROLE --file {source}`")
    claims, key = read_claims(token[1]), read_seed(seed[1])
    if claims.sub != key.public:
        raise BadConfig(f"{source}: its token and its seed belong to different keys: make it again")
    roles = [tag.removeprefix(ROLE_TAG) for tag in claims.nats.tags if tag.startswith(ROLE_TAG)]
    return Identity(claims.name, roles[0] if roles else "", token[1], key, claims.exp)
