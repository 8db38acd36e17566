"""Certificates: made for names, replaced in time, and for routes only where they say so."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from bus.certificates import RENEW_DAYS, SERVER_DAYS, days_left, is_good, issue_server, make_authority
from bus.errors import BadConfig

NOW = datetime(2026, 11, 21, tzinfo=UTC)
AUTHORITY = make_authority(NOW)
NAMES = ("localhost", "127.0.0.1", "::1")


def test_a_certificate_is_good_for_its_names_until_it_is_to_be_renewed():
    made = issue_server(AUTHORITY, NAMES, NOW)
    assert is_good(made.certificate, AUTHORITY.certificate, NAMES, NOW)
    assert is_good(made.certificate, AUTHORITY.certificate, (), NOW)
    assert not is_good(made.certificate, AUTHORITY.certificate, (*NAMES, "one.example"), NOW)
    assert days_left(made.certificate, NOW) == SERVER_DAYS
    late = NOW + timedelta(days=SERVER_DAYS - RENEW_DAYS)
    assert is_good(made.certificate, AUTHORITY.certificate, NAMES, late)
    assert not is_good(made.certificate, AUTHORITY.certificate, NAMES, late + timedelta(seconds=1))


def test_certificates_of_others_and_no_certificates_are_not_good():
    other = issue_server(make_authority(NOW), NAMES, NOW)
    for text in (other.certificate, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", other.key):
        assert not is_good(text, AUTHORITY.certificate, NAMES, NOW)
    with pytest.raises(BadConfig, match="PEM"):
        days_left("x", NOW)


@pytest.mark.parametrize("is_route", [False, True])
def test_only_brokers_can_show_theirs_to_brokers(is_route):
    made = issue_server(AUTHORITY, NAMES, NOW, is_route=is_route)
    usage = x509.load_pem_x509_certificate(made.certificate.encode()).extensions
    purposes = set(usage.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert (ExtendedKeyUsageOID.CLIENT_AUTH in purposes) == is_route
    assert ExtendedKeyUsageOID.SERVER_AUTH in purposes
    assert not usage.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("name", ["é.example", "\ud800"])
def test_a_name_that_no_certificate_can_have_is_refused(name):
    with pytest.raises(BadConfig, match="cannot stand"):
        issue_server(AUTHORITY, [name], NOW)
