"""I/O. Blobs under their own SHA-256, in a NATS object store: `nats object get` reads them too."""

import base64
import hashlib
import re
import secrets
from datetime import UTC, datetime

import msgspec

from bus import wire
from bus.errors import BusUnavailable, Conflict, Malformed
from bus.jetstream import API_TIMEOUT_S, JetStream, publish_headers
from bus.protocol import Incoming

CHUNK_BYTES = 128 * 1024
MAX_BLOB_BYTES = 256 * 2**20

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class _Options(msgspec.Struct, frozen=True):
    max_chunk_size: int = 0


class _Meta(msgspec.Struct, frozen=True):
    """What NATS object stores know of an object."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str = ""
    options: _Options = _Options(CHUNK_BYTES)
    deleted: bool = False


_meta = msgspec.json.Decoder(_Meta)


def check_digest(digest: str) -> str:
    """Return a blob's name; raise `Malformed` when it is none."""
    if not _DIGEST.match(digest):
        raise Malformed(f"{digest[:80]!r} is no SHA-256 in hex")
    return digest


class Blobs:
    """The object store `bucket`, whose stream is `OBJ_{bucket}`."""

    def __init__(self, jetstream: JetStream, bucket: str) -> None:
        self._jetstream = jetstream
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"

    async def put(self, data: bytes) -> str:
        """Store; raise `Malformed` when larger than `MAX_BLOB_BYTES`, `QueueFull` when the store is full."""
        if len(data) > MAX_BLOB_BYTES:
            raise Malformed(f"a blob of {len(data)} bytes: at most {MAX_BLOB_BYTES} are taken")
        checksum = hashlib.sha256(data)
        digest = checksum.hexdigest()
        await self._jetstream.link.wait_ready(API_TIMEOUT_S)
        if await self._find(digest) is not None:
            return digest
        nuid = secrets.token_hex(11)
        pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        for piece in pieces:
            await self._jetstream.append(self._chunks(nuid), piece, None, API_TIMEOUT_S)
        meta = _Meta(
            name=digest,
            bucket=self._bucket,
            nuid=nuid,
            size=len(data),
            chunks=len(pieces),
            digest=f"SHA-256={base64.urlsafe_b64encode(checksum.digest()).decode()}",
            mtime=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        )
        headers = {"Nats-Rollup": "sub", **(publish_headers(last_subject_seq=0) or {})}
        try:
            await self._jetstream.append(self._name(digest), msgspec.json.encode(meta), headers, API_TIMEOUT_S)
        except Conflict:
            # Somebody stored the same bytes meanwhile: theirs stay, and ours shrink to nothing.
            await self._jetstream.append(self._chunks(nuid), b"", {"Nats-Rollup": "sub"}, API_TIMEOUT_S)
        return digest

    async def get(self, digest: str) -> bytes:
        """Fetch and check; raise `BusUnavailable` when it is not there or not whole."""
        check_digest(digest)
        await self._jetstream.link.wait_ready(API_TIMEOUT_S)
        meta = await self._find(digest)
        if meta is None:
            raise BusUnavailable(f"blob {digest} is not in {self._bucket}")
        if meta.size > MAX_BLOB_BYTES:
            raise Malformed(f"blob {digest} claims {meta.size} bytes: at most {MAX_BLOB_BYTES} are taken")
        data = bytearray()
        seq = 1
        while len(data) < meta.size:
            found = await self._jetstream.read_next(self._stream, self._chunks(meta.nuid), seq)
            if found is None or not found.payload:
                raise BusUnavailable(f"blob {digest} is incomplete: {len(data)} of {meta.size} bytes are there")
            data += found.payload
            seq = found.seq + 1
        if hashlib.sha256(data).hexdigest() != digest:
            raise BusUnavailable(f"blob {digest} is damaged: its bytes have another digest")
        return bytes(data)

    async def _find(self, digest: str) -> _Meta | None:
        incoming = await self._direct(f".{self._name(digest)}", b"")
        if (incoming.headers or {}).get(wire.STATUS) == "404":
            return None
        try:
            meta = _meta.decode(incoming.payload)
        except msgspec.MsgspecError as error:
            raise BusUnavailable(f"blob {digest}: its description cannot be read: {error}") from error
        return None if meta.deleted else meta

    async def _direct(self, suffix: str, body: bytes) -> Incoming:
        return await self._jetstream.read(f"{self._stream}{suffix}", body)

    def _name(self, digest: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(digest.encode()).decode()}"

    def _chunks(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"
