"""Why a broker does not let a process in, as it is told."""

import ssl

import pytest

from bus.access import Access, process_name, why_denied
from bus.authority import mint, new_authority
from bus.config import BusConfig
from bus.errors import BadConfig
from bus.identity import read_credentials

AUTHORITY = new_authority()
VIOLATION = RuntimeError("nats: 'Authorization Violation'")


def test_a_broker_that_wants_credentials_says_how_to_make_them():
    denied = why_denied(VIOLATION, Access(), BusConfig(), "tls://x:1")
    assert denied is not None
    assert "without credentials" in str(denied)
    assert "busway keys bus" in denied.hint


def test_credentials_that_are_void_are_named():
    identity = read_credentials(mint(AUTHORITY, "worker", "w-1", now=1).content, "w.creds")
    denied = why_denied(VIOLATION, Access(identity), BusConfig(credentials_file="w.creds"), "tls://x:1")
    assert "w-1 (w.creds)" in str(denied)


def test_a_certificate_that_is_not_trusted_is_told_from_an_absent_broker():
    error = ssl.SSLCertVerificationError("x")
    error.verify_message = "self-signed certificate"
    denied = why_denied(error, Access(), BusConfig(tls_ca="ca.pem"), "tls://x:1")
    assert "signed by ca.pem (self-signed certificate)" in str(denied)
    assert why_denied(ConnectionRefusedError("no"), Access(), BusConfig(), "tls://x:1") is None


def test_a_process_takes_no_credentials_of_another_role(tmp_path):
    path = tmp_path / "c.creds"
    for role, prefix in (("worker", "w-1"), ("operator", "o-1")):
        path.write_text(mint(AUTHORITY, role, prefix, now=1).content)
        assert process_name(BusConfig(credentials_file=str(path)), "worker") == prefix
    path.write_text(mint(AUTHORITY, "observer", "o-2", now=1).content)
    with pytest.raises(BadConfig, match="o-2, observer, but this is a worker: busway keys bus worker"):
        process_name(BusConfig(credentials_file=str(path)), "worker")
    assert process_name(BusConfig(), "router").startswith("r-")
