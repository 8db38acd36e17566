"""I/O. What a process shows to the broker, and what the broker must show: credentials and certificates, from files."""

import base64
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bus.config import BusConfig
from bus.errors import AccessDenied, BadConfig
from bus.registry import new_id
from bus.roles import ANSWERING, OWNERS, BusRole

if TYPE_CHECKING:
    from bus.identity import Identity

MAX_FILE_BYTES = 128 * 1024


class Access(NamedTuple):
    """How to get in. Nobody without credentials pays for the code that reads them."""

    identity: "Identity | None" = None
    tls: ssl.SSLContext | None = None

    @property
    def is_owner(self) -> bool:
        """Whether this process creates streams, and does not wait for those who do."""
        return self._is_among(OWNERS)

    @property
    def keeps_answers(self) -> bool:
        """Whether a delivery may be answered over another connection than the one that brought it.

        Most roles have the right to answer from the delivery itself, and it ends with the connection.
        """
        return self._is_among(ANSWERING)

    def sign(self, nonce: str) -> bytes:
        """Return the proof that this process has the key of its credentials."""
        assert self.identity is not None
        return base64.urlsafe_b64encode(self.identity.key.sign(nonce.encode())).rstrip(b"=")

    def token(self) -> bytes:
        """Return what the credentials say."""
        assert self.identity is not None
        return self.identity.token.encode()

    def _is_among(self, roles: Sequence[BusRole]) -> bool:
        """Whether it may do what these roles may: with credentials that name no role, or none at all, anything."""
        return self.identity is None or not self.identity.role or self.identity.role in roles


def read_access(config: BusConfig) -> Access:
    """Read the files that the configuration names; raise `BadConfig`."""
    return Access(_read_identity(config), client_context(config.tls_ca) if config.tls_ca else None)


def process_name(config: BusConfig, role: BusRole) -> str:
    """Return the id of this process: what its credentials say, else a new one.

    Raises `BadConfig`, also for credentials of another role: what they do not allow would fail one by one.
    """
    identity = _read_identity(config)
    if identity is None:
        return new_id(role[0])
    if identity.role not in ("", "operator", role):
        raise BadConfig(
            f"bus.credentials_file: {config.credentials_file} makes its holder {identity.name}, {identity.role}, but "
            f"this is a {role}: busway keys bus {role} --file {role}.creds"
        )
    return identity.name


def why_denied(error: Exception, access: Access, config: BusConfig, where: str) -> AccessDenied | None:
    """Return what to tell of a connection that failed in a way that will not pass by itself; else None."""
    if isinstance(error, ssl.SSLCertVerificationError):
        trusted = f"signed by {config.tls_ca}" if config.tls_ca else "that this machine trusts"
        return AccessDenied(
            f"the broker at {where} shows no certificate {trusted} ({error.verify_message})",
            hint="--set bus.tls_ca=FILE: .busway/security/ca.pem of the machine that it runs on",
        )
    if "authorization violation" not in str(error).lower():
        return None
    hint = "busway keys bus ROLE --file FILE, where the broker runs, then --set bus.credentials_file=FILE"
    if access.identity is None:
        return AccessDenied(f"the broker at {where} lets nobody in without credentials", hint=hint)
    reason = "they were revoked or have ended, or it is the broker of another system"
    return AccessDenied(
        f"the broker at {where} does not take the credentials of {access.identity.name} ({config.credentials_file}): "
        f"{reason}",
        hint=hint,
    )


def _read_identity(config: BusConfig) -> "Identity | None":
    if not config.credentials_file:
        return None
    from bus.identity import read_credentials

    return read_credentials(_read(config.credentials_file), config.credentials_file)


def _read(path: str) -> str:
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise BadConfig(f"bus.credentials_file: {path} is too large for credentials")
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"bus.credentials_file: cannot read {path}: {error}") from error


def client_context(authority_file: str) -> ssl.SSLContext:
    """Return how to check servers: by this PEM file, or, where it is empty, by what the machine trusts.

    Raises `BadConfig`.
    """
    try:
        context = ssl.create_default_context(cafile=authority_file or None)
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"cannot use {authority_file} as a PEM file of certificate authorities: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
