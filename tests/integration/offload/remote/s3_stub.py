"""A fast S3 for tests: PUT, GET with ranges, HEAD, DELETE of many, ListObjectsV2, in memory; `s3_stub.py PORT FAULTS`.

The file FAULTS, looked at with each request, says how it misbehaves: {"status": 500}, {"delay_s": 1},
{"truncate": 10} (bytes of a body), {"corrupt": true}, {"hang": true}. Buckets need not be made; `missing` is missing.
"""

import asyncio
import json
import re
import sys
import time
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

OBJECTS: dict[str, tuple[bytes, float]] = {}
FAULT: dict[str, float] = {}
FAULTS = Path(sys.argv[2])
_HEADER = re.compile(rb"(?i)(content-length|range): *([^\r]*)\r\n")


class Reply(NamedTuple):
    status: int
    body: bytes
    at: float = 0.0
    part: str = ""


class Session(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.received = bytearray()

    def data_received(self, data):
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.received[: end + 4])
            headers = {name.lower(): value for name, value in _HEADER.findall(head)}
            size = int(headers.get(b"content-length", b"0"))
            if len(self.received) < end + 4 + size:
                return
            body = bytes(self.received[end + 4 : end + 4 + size])
            del self.received[: end + 4 + size]
            method, target, _ = head.split(b" ", 2)
            self.answer(method.decode(), target.decode(), headers, body)

    def answer(self, method, target, headers, body):
        look()
        if "hang" in FAULT:
            return
        if "status" in FAULT:
            reply = Reply(int(FAULT["status"]), b"<Error><Code>InternalError</Code></Error>")
        else:
            reply = serve(method, target, headers, body)
        if FAULT.get("delay_s"):
            asyncio.get_running_loop().call_later(FAULT["delay_s"], self.send, method, reply)
        else:
            self.send(method, reply)

    def send(self, method, reply):
        if self.transport.is_closing():
            return
        lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}", 'ETag: "0"']
        lines.append(f"Last-Modified: {formatdate(reply.at, usegmt=True)}")
        if reply.part:
            lines.append(f"Content-Range: {reply.part}")
        head = "\r\n".join([*lines, "\r\n"]).encode()
        self.transport.writelines([head, b"" if method == "HEAD" else reply.body])


def serve(method, target, headers, body):
    parts = urlsplit(target)
    _, bucket, name = unquote(parts.path).split("/", 2) if parts.path.count("/") > 1 else ("", parts.path[1:], "")
    query = parse_qs(parts.query, keep_blank_values=True)
    if bucket == "missing":
        return Reply(404, b"<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>")
    if method == "POST" and "delete" in query:
        names = [name.decode() for name in re.findall(rb"<Key>([^<]*)</Key>", body)]
        for each in names:
            OBJECTS.pop(each, None)
        rows = "".join([f"<Deleted><Key>{each}</Key></Deleted>" for each in names])
        return Reply(200, f"<DeleteResult>{rows}</DeleteResult>".encode())
    if "list-type" in query:
        prefix = query.get("prefix", [""])[0]
        found = [(key, *OBJECTS[key]) for key in sorted(OBJECTS) if key.startswith(prefix)]
        rows = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><LastModified>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(at))}</LastModified></Contents>"
            for key, data, at in found
        )
        return Reply(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())
    if method == "PUT":
        OBJECTS[name] = (body, time.time())
        return Reply(200, b"")
    if name not in OBJECTS:
        return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
    data, at = OBJECTS[name]
    if "truncate" in FAULT:
        data = data[: -int(FAULT["truncate"])]
    if "corrupt" in FAULT:
        data = data[:-1] + bytes([data[-1] ^ 1])
    if b"range" in headers:
        first, last = re.fullmatch(rb"bytes=(\d+)-(\d+)", headers[b"range"]).groups()
        first, end = int(first), min(int(last) + 1, len(data))
        if first >= end:
            return Reply(416, b"<Error><Code>InvalidRange</Code></Error>")
        return Reply(206, data[first:end], at, f"bytes {first}-{end - 1}/{len(data)}")
    return Reply(200, data, at)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Session, "127.0.0.1", port)
    await server.serve_forever()


def look() -> None:
    with suppress(OSError):
        text = FAULTS.read_text()
        FAULT.clear()
        FAULT.update(json.loads(text))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
