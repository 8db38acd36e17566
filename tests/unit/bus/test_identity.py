"""Keys, tokens, credentials: what is written is read, what is damaged is refused, and no error shows a seed."""

import pytest

from bus.authority import mint, new_authority, revoke
from bus.errors import BadConfig
from bus.identity import read_credentials, write_credentials
from bus.jwt import read_claims, sign_claims
from bus.nkeys import Kind, new_pair, read_seed

AUTHORITY = new_authority()


@pytest.mark.parametrize("kind", Kind)
def test_a_seed_is_the_key(kind):
    pair = new_pair(kind)
    again = read_seed(pair.seed)
    assert (again.public, again.kind, again.sign(b"x")) == (pair.public, kind, pair.sign(b"x"))
    assert pair.public[0] == {Kind.OPERATOR: "O", Kind.ACCOUNT: "A", Kind.USER: "U"}[kind]
    assert pair.seed not in repr(pair)


def test_the_encoding_is_that_of_nats():
    """The pair in NATS's documentation of nkeys, as `nk -gen user -pubout` prints it."""
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    assert read_seed(seed).public == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


@pytest.mark.parametrize("change", ["", "SUAA", "x" * 500, "short", "flip", "é", "public"])
def test_a_damaged_seed_is_refused_and_not_shown(change):
    seed = new_pair(Kind.USER).seed
    damaged = {
        "short": seed[:-1],
        "flip": seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:],
        "public": new_pair(Kind.USER).public,
    }.get(change, change)
    with pytest.raises(BadConfig) as caught:
        read_seed(damaged)
    assert not damaged or damaged not in str(caught.value)


def test_credentials_say_who_their_holder_is():
    minted = mint(AUTHORITY, "worker", "w-1", now=100, expires_at=200, models=["qwen"])
    identity = read_credentials(minted.content, "w.creds")
    assert (identity.name, identity.role, identity.expires_at) == ("w-1", "worker", 200)
    assert identity.key.public == minted.public
    claims = read_claims(identity.token)
    assert "model:qwen" in claims.nats.tags
    assert "own:own-w-1-both" in claims.nats.tags


def test_files_that_are_no_credentials_are_refused_by_name():
    first, second = (mint(AUTHORITY, "observer", name, now=1) for name in ("o-1", "o-2"))
    mixed = write_credentials(read_credentials(first.content, "a").token, read_credentials(second.content, "b").key)
    for content in ("", "x" * 1000, first.content[:300], first.content.replace("SEED", "SEAD"), mixed):
        with pytest.raises(BadConfig, match=r"w\.creds"):
            read_credentials(content, "w.creds")


@pytest.mark.parametrize("token", ["", "a.b", "a.!.c", "a.e30.c.d", "a." + "W" * 70_000 + ".c", "a.WzFd.c"])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(BadConfig, match="busway keys bus"):
        read_claims(token)


def test_a_token_is_the_same_for_the_same_claims():
    key = new_pair(Kind.OPERATOR)
    first, second = (sign_claims("operator", "x", key.public, {}, key, issued_at=0) for _ in range(2))
    assert first == second


def test_revoking_names_the_key_and_forgets_the_name():
    authority = type(AUTHORITY)(
        operator="", system="", account="", roles={}, issued={"w-1": "UABC", "w-2": "UDEF"}, revoked={"UOLD": 1}
    )
    changed = revoke(authority, "w-1", now=7)
    assert (changed.issued, changed.revoked) == ({"w-2": "UDEF"}, {"UOLD": 1, "UABC": 7})
    with pytest.raises(KeyError):
        revoke(changed, "w-1", now=8)
    assert "UDEF" not in repr(changed)
