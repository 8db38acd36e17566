"""I/O. The secrets of one system, below its state directory: who vouches for its processes and servers.

`authority.json` and `ca.key` make whoever has them anybody: they stay on the machine of the broker. What a process
needs is its own file of credentials, and `ca.pem`, which is no secret.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bus.authority import Authority, make_accounts, mint, new_authority, revoke, with_all_roles
from bus.certificates import Certificate, is_good, issue_server, make_authority
from bus.errors import BadConfig
from bus.identity import read_credentials
from bus.private import make_private_dir, write_private
from bus.registry import new_id
from bus.roles import ROLES, BusRole
from bus.server_config import Guard
from bus.streams import Declared
from bus.subjects import Subjects

FOLDER = "security"
AUTHORITY_FILE = "ca.pem"
SERVER_FILE = "server.pem"
ROUTE_FILE = "route.pem"


class Vault:
    """The folder; made by `open_vault`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority_file = folder / AUTHORITY_FILE
        self.server_file = folder / SERVER_FILE

    def guard(self, subjects: Subjects, declared: Sequence[Declared], names: Iterable[str]) -> Guard:
        """Return what a server is guarded with that is reached by `names`; a certificate that ends soon is replaced."""
        accounts = make_accounts(self._authority(), subjects, declared, now=int(time.time()))
        self._certify(list(names))
        return Guard(
            accounts=accounts,
            tls_cert=str(self.server_file),
            tls_key=str(self.folder / "server.key"),
            tls_ca=str(self.authority_file),
            route_cert=str(self.folder / ROUTE_FILE),
            route_key=str(self.folder / "route.key"),
        )

    def issue(
        self,
        role: BusRole,
        *,
        name: str = "",
        models: Iterable[str] = (),
        expires_at: int = 0,
        path: Path | None = None,
    ) -> tuple[str, Path]:
        """Write credentials, by default into the vault; return the name of their holder, and the file.

        Those with a name that was given can be revoked by it.
        """
        authority = self._authority()
        minted = mint(
            authority, role, name or new_id(role[0]), now=int(time.time()), expires_at=expires_at, models=models
        )
        if name:
            if name in authority.issued:
                raise BadConfig(f"there are credentials for {name!r} already: busway keys revoke {name}")
            self._save(msgspec.structs.replace(authority, issued={**authority.issued, name: minted.public}))
        return minted.name, write_private(path or self.credentials_file(minted.name), minted.content)

    def renew(self, path: Path, *, models: Iterable[str], expires_at: int) -> None:
        """Replace a file of credentials by one for the same holder that lasts until `expires_at`; raise `BadConfig`."""
        try:
            holder = read_credentials(path.read_text(), str(path))
        except OSError as error:
            raise BadConfig(f"cannot renew {path}: {error}") from error
        role = next(role for role in ROLES if role == holder.role)
        now = int(time.time())
        minted = mint(self._authority(), role, holder.name, now=now, expires_at=expires_at, models=models)
        write_private(path, minted.content)

    def credentials_file(self, name: str) -> Path:
        """Return where credentials are kept here; `name` is a token."""
        return make_private_dir(self.folder / "credentials") / f"{name}.creds"

    def revoke(self, name: str) -> None:
        """Make credentials void, from the next start or reload of the server on; raise `BadConfig` for unknown ones."""
        authority = self._authority()
        if name not in authority.issued:
            known = ", ".join(sorted(authority.issued)) or "none"
            raise BadConfig(f"no credentials were made for {name!r}; there are: {known}")
        self._save(revoke(authority, name, now=int(time.time())))

    def _authority(self) -> Authority:
        path = self.folder / "authority.json"
        if not path.exists():
            return self._save(new_authority())
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Authority)
        except (OSError, msgspec.MsgspecError) as error:
            raise BadConfig(f"cannot read {path}: {error}") from error
        complete = with_all_roles(found)
        return found if complete is found else self._save(complete)

    def _save(self, authority: Authority) -> Authority:
        write_private(self.folder / "authority.json", msgspec.json.encode(authority).decode())
        return authority

    def _certify(self, names: Sequence[str]) -> None:
        now, key_file = datetime.now(UTC), self.folder / "ca.key"
        if not key_file.exists() or not self.authority_file.exists():
            made = make_authority(now)
            write_private(self.authority_file, made.certificate)
            write_private(key_file, made.key)
        authority = Certificate(self.authority_file.read_text(), key_file.read_text())
        for path, is_route in ((self.server_file, False), (self.folder / ROUTE_FILE, True)):
            present = path.read_text() if path.exists() else ""
            if not is_good(present, authority.certificate, names, now):
                made = issue_server(authority, names, now, is_route=is_route)
                write_private(path.with_suffix(".key"), made.key)
                write_private(path, made.certificate)


def open_vault(state_dir: str) -> Vault:
    """Return the vault of a state directory, made if there is none; nobody else may look into it."""
    return Vault(make_private_dir(Path(state_dir).absolute() / FOLDER))


def find_vault(state_dir: str) -> Vault:
    """Return the vault of a state directory; raise `BadConfig` when there is none."""
    folder = Path(state_dir).absolute() / FOLDER
    if not (folder / "authority.json").exists():
        raise BadConfig(f"nobody vouches for processes in {state_dir}: `busway up --secure` makes an authority there")
    return Vault(folder)
