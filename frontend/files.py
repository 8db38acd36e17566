"""I/O. Files of the OpenAI API: kept on the bus in pieces, written and read one piece at a time.

A file is there once its entry is: pieces without one (an upload that was cut off) go with the bucket's age.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator

from bus.codec import codec, encode
from bus.errors import Permanent
from bus.messages.batches import StoredFile
from bus.protocol import Bus
from bus.subjects import slug
from frontend.errors import BodyTooLarge

PIECE_BYTES = 512 * 2**10
MAX_FILE_BYTES = 200 * 2**20
MAX_MADE_BYTES = 2 * 2**30
KEPT_S = 30 * 86_400
"""As the buckets UPLOADS and PIECES have it."""

_FILE_ID = re.compile(r"file-[0-9a-f]{24,64}\Z")

_decode = codec(StoredFile).decode


class NoSuchFile(Permanent):
    """No such file is stored, for this tenant."""

    code = "not_found"


class Files:
    """The files of all tenants."""

    def __init__(self, bus: Bus) -> None:
        self._entries = bus.bucket("UPLOADS")
        self._pieces = bus.bucket("PIECES")

    def begin(self, tenant: str, file: str = "", *, is_made: bool = False) -> "FileWriter":
        """Begin to write a file, under a new id if none is given; one that is made here may be larger."""
        limit_bytes = MAX_MADE_BYTES if is_made else MAX_FILE_BYTES
        return FileWriter(self, tenant, file or f"file-{secrets.token_hex(12)}", limit_bytes)

    async def find(self, tenant: str, file: str) -> StoredFile:
        """Return what is known of a file; raise `NoSuchFile`."""
        entry = await self._entries.get(_key(tenant, file)) if _FILE_ID.match(file) else None
        if entry is not None and entry.value is not None:
            stored: StoredFile = _decode(entry.value)
            # Two tenants may share a slug: the entry itself says whose it is.
            if stored.tenant == tenant:
                return stored
        raise NoSuchFile(f"No such File object: {file[:100]}")

    async def listed(self, tenant: str) -> list[tuple[str, StoredFile]]:
        """Return all files of a tenant by id, the newest first."""
        found = [(entry.key.rpartition(".")[2], _decode(entry.value or b"")) for entry in await self._entries.entries()]
        mine = [(file, stored) for file, stored in found if stored.tenant == tenant]
        return sorted(mine, key=lambda each: (-each[1].created_at, each[0]))

    async def read(self, tenant: str, file: str, stored: StoredFile) -> AsyncIterator[bytes]:
        """Yield the content, piece by piece; raise `NoSuchFile` when one is gone."""
        for number in range(stored.num_pieces):
            entry = await self._pieces.get(_piece(tenant, file, number))
            if entry is None or entry.value is None:
                raise NoSuchFile(f"{file} is not whole: it was deleted meanwhile")
            yield entry.value

    async def delete(self, tenant: str, file: str) -> None:
        """Remove; raise `NoSuchFile`."""
        stored = await self.find(tenant, file)
        await self._entries.delete(_key(tenant, file))
        await self.drop_pieces(tenant, file, stored.num_pieces)

    async def put_piece(self, tenant: str, file: str, number: int, data: bytes) -> None:
        """Store one piece."""
        await self._pieces.put(_piece(tenant, file, number), data)

    async def put_entry(self, file: str, stored: StoredFile) -> None:
        """Make the file known."""
        await self._entries.put(_key(stored.tenant, file), encode(stored))

    async def drop_pieces(self, tenant: str, file: str, count: int) -> None:
        """Remove the first pieces."""
        for number in range(count):
            await self._pieces.delete(_piece(tenant, file, number))


class FileWriter:
    """Writes one file; at most a piece of it is in memory."""

    def __init__(self, files: Files, tenant: str, file: str, limit_bytes: int) -> None:
        self._files = files
        self._limit_bytes = limit_bytes
        self._tenant = tenant
        self.file = file
        self._buffer = bytearray()
        self._num_pieces = 0
        self.num_bytes = 0

    async def write(self, data: bytes) -> None:
        """Add content; raise `BodyTooLarge`, `QueueFull` when the store is full."""
        self.num_bytes += len(data)
        if self.num_bytes > self._limit_bytes:
            raise BodyTooLarge(f"The file has more than the {self._limit_bytes} bytes that are taken: split it.")
        self._buffer += data
        while len(self._buffer) >= PIECE_BYTES:
            await self._put(bytes(self._buffer[:PIECE_BYTES]))
            del self._buffer[:PIECE_BYTES]

    async def finish(self, filename: str, purpose: str) -> StoredFile:
        """Write the rest, and make the file known."""
        if self._buffer:
            await self._put(bytes(self._buffer))
            self._buffer.clear()
        now = time.time()
        stored = StoredFile(
            tenant=self._tenant,
            filename=filename,
            purpose=purpose,
            num_bytes=self.num_bytes,
            num_pieces=self._num_pieces,
            created_at=now,
            expires_at=now + KEPT_S,
        )
        await self._files.put_entry(self.file, stored)
        return stored

    async def abandon(self) -> None:
        """Remove what was written."""
        await self._files.drop_pieces(self._tenant, self.file, self._num_pieces)

    async def _put(self, data: bytes) -> None:
        await self._files.put_piece(self._tenant, self.file, self._num_pieces, data)
        self._num_pieces += 1


def _key(tenant: str, file: str) -> str:
    return f"{slug(tenant)}.{file}"


def _piece(tenant: str, file: str, number: int) -> str:
    return f"{_key(tenant, file)}.{number}"
