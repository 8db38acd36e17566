"""Pure. X.509 for one system: a certificate authority of its own, and certificates that it signs for servers."""

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bus.errors import BadConfig

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""What browsers and operating systems take at most."""
RENEW_DAYS = 30
"""A certificate that ends so soon is replaced."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_CLOCK_SKEW = timedelta(hours=1)


class Certificate(NamedTuple):
    """PEM texts; `key` is a secret."""

    certificate: str
    key: str


def make_authority(now: datetime) -> Certificate:
    """Return a new authority, able to sign servers and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Busway's own certificate authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pem(builder.sign(key, SHA256()), key)


def issue_server(authority: Certificate, names: Iterable[str], now: datetime, *, is_route: bool = False) -> Certificate:
    """Return a certificate for a server that is reached by these host names and IP addresses.

    One for a route also shows a server who it is that connects to it.
    Raises `BadConfig` for a name that cannot stand in a certificate, or an authority that is none.
    """
    issuer, issuer_key = _read(authority)
    client = [ExtendedKeyUsageOID.CLIENT_AUTH] if is_route else []
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "busway")]),
            issuer.subject,
            key.public_key(),
            now,
            SERVER_DAYS,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in sorted(set(names))]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, *client]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return _pem(builder.sign(issuer_key, SHA256()), key)


def is_good(certificate: str, authority: str, names: Iterable[str], now: datetime) -> bool:
    """Say whether a server's certificate is of this authority, for all these names, and lasts `RENEW_DAYS` more."""
    try:
        found, issuer = (x509.load_pem_x509_certificate(text.encode()) for text in (certificate, authority))
        found.verify_directly_issued_by(issuer)
        present = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    lasts = found.not_valid_after_utc - now >= timedelta(days=RENEW_DAYS)
    return lasts and {_alternative(name) for name in names} <= set(present)


def days_left(certificate: str, now: datetime) -> float:
    """Return for how long a certificate is valid; raise `BadConfig` for what is none."""
    try:
        return (x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc - now) / timedelta(days=1)
    except ValueError as error:
        raise BadConfig(f"no certificate in PEM: {error}") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except (ValueError, TypeError) as error:
        raise BadConfig(f"{name!r} cannot stand in a certificate: {error}") from error


def _read(authority: Certificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate.encode())
        key = load_pem_private_key(authority.key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise BadConfig(f"the certificate authority cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadConfig("the certificate authority has a key of another kind")
    return certificate, key


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Certificate:
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(certificate.public_bytes(Encoding.PEM).decode(), secret.decode())
