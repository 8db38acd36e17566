"""I/O. The keys that a frontend knows: from a file, or from the bucket KEYS, where a change takes effect at once."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from bus.codec import codec
from bus.errors import BadConfig, Malformed
from bus.keys import BUCKET, decode_key_file, digest_of
from bus.messages.keys import ApiKey, KeyUse
from bus.protocol import Bus, Entry
from frontend.auth.identity import Identity
from frontend.auth.limits import Account
from frontend.errors import InvalidKey

FROM_BUCKET = "bucket"
"""Value of `frontend.keys` that names the bucket; any other names a file."""

log = structlog.get_logger()


class Keys:
    """The accounts of all keys, by the digest of the key."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._used: set[Account] = set()
        """Those with limits that were used since the last call of `take_used`."""

    def __len__(self) -> int:
        return len(self._accounts)

    def set(self, digest: str, key: ApiKey | None) -> None:
        """Take a key that is new or changed, or is there no more (None). A changed one begins with full buckets."""
        if key is None:
            self._accounts.pop(digest, None)
        else:
            self._accounts[digest] = Account(key, time.monotonic(), digest=digest, on_use=self._used.add)

    def take_used(self) -> frozenset[Account]:
        """Return the accounts with limits that were used since the last call."""
        used = frozenset(self._used)
        self._used.clear()
        return used

    def hear(self, frontend: str, uses: list[KeyUse]) -> None:
        """Count what another frontend let through."""
        now = time.monotonic()
        for use in uses:
            account = self._accounts.get(use.digest)
            if account is not None:
                account.hear(frontend, use, now)

    def identify(self, key: bytes) -> Identity:
        """Return whose key it is, and count the request; raise `InvalidKey`, `RateLimited`.

        Only digests are compared: how long that takes tells nothing of the keys that there are.
        """
        if not key:
            raise InvalidKey("Send an API key: Authorization: Bearer <key>, or x-api-key: <key>.")
        account = self._accounts.get(digest_of(key))
        if account is None:
            raise InvalidKey("Incorrect API key provided.")
        if account.key.expires_at is not None and account.key.expires_at <= time.time():
            raise InvalidKey(f"The API key {account.key.name!r} has expired.")
        account.admit(time.monotonic())
        return Identity(account.key.tenant, account)


@asynccontextmanager
async def open_keys(bus: Bus, source: str) -> AsyncIterator[Keys | None]:
    """Yield the keys, followed while the context is open; None when `source` is empty. Raises `BadConfig`."""
    if not source:
        yield None
        return
    keys = Keys()
    if source != FROM_BUCKET:
        for digest, key in read_key_file(Path(source)).items():
            keys.set(digest, key)
        yield keys
        return

    def receive(entry: Entry) -> None:
        try:
            keys.set(entry.key, None if entry.value is None else codec(ApiKey).decode(entry.value))
        except Malformed as error:
            keys.set(entry.key, None)
            log.warning("key.malformed", digest=entry.key[:8], reason=str(error))

    async with bus.bucket(BUCKET).watch(receive):
        yield keys


def read_key_file(path: Path) -> dict[str, ApiKey]:
    """Return the keys of a file by digest; raise `BadConfig` for what is no such file."""
    try:
        return decode_key_file(path.read_bytes(), path)
    except OSError as error:
        raise BadConfig(
            f"frontend.keys: cannot read {path}: {error.strerror}. Make it: busway keys add NAME --file {path}"
        ) from error


def key_of(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that a request carries, empty when it carries none; headers are by lower-case name."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return (key if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")).strip()
