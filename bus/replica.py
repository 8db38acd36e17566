"""Pure. What a watcher knows of a bucket, and what changes when it reads the bucket again."""

import re

from bus.errors import Malformed
from bus.protocol import Entry

_KEY = re.compile(r"[-/_=A-Za-z0-9]+(?:\.[-/_=A-Za-z0-9]+)*\Z")
MAX_KEY_BYTES = 512
SETTLE_S = 2.0
"""How long a key may be missing after its bucket came back before it counts as gone: owners put theirs again."""


def check_key(key: str) -> str:
    """Return a key that a bucket takes; raise `Malformed`."""
    if len(key) > MAX_KEY_BYTES or not _KEY.match(key):
        raise Malformed(f"{key[:80]!r} is no key: letters, digits and -/_= in tokens parted by dots")
    return key


class Replica:
    """Versions (revision and hash of the value) of the live keys, as far as they were told to the watcher.

    After a loss the bucket is read again from `begin` on. Keys that do not come back are kept as missing until
    `settle`: a broker that lost its memory gets them from their owners, and nobody should see a fleet vanish
    and return. A new broker counts revisions from 1, so they alone do not tell what is new.
    """

    def __init__(self) -> None:
        self._versions: dict[str, tuple[int, int]] = {}
        self._missing: set[str] = set()

    def begin(self) -> None:
        """Start to read everything again."""
        self._missing = set(self._versions)

    def accept(self, entry: Entry) -> bool:
        """Take what the bucket says now; return whether that is news."""
        self._missing.discard(entry.key)
        if entry.value is None:
            return self._versions.pop(entry.key, None) is not None
        version = (entry.revision, hash(entry.value))
        is_news = self._versions.get(entry.key) != version
        self._versions[entry.key] = version
        return is_news

    def has_missing(self) -> bool:
        return bool(self._missing)

    def settle(self) -> list[Entry]:
        """Give up what is still missing, and return it as gone."""
        gone = sorted(self._missing & self._versions.keys())
        self._missing = set()
        return [Entry(key, None, self._versions.pop(key)[0]) for key in gone]
