"""Pure. Read one HTTP response with server-sent events from bytes cut anywhere, as cheaply as Python can.

An event is never decoded: a JSON string holds no raw newline and no unescaped quote, so a token chunk is told by the
marker `"content":"` alone. The marker is learned once a response; from then on an event costs two `bytes.count`.
"""

import re
from typing import Final

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024
MAX_EXCERPT_BYTES: Final = 300

_CONTENT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning|text)":\s*"(?=[^"])')
_USAGE: Final = re.compile(rb'"completion_tokens":\s*(\d{1,15})')
_DONE: Final = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_ERROR: Final = re.compile(rb'"error":\s*[{"]')
_STATUS: Final = re.compile(rb"[1-9]\d\d\Z")
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{1,8}\Z")


class BadResponse(Exception):
    """The bytes are not an HTTP/1.1 response that this reader understands."""


class CutResponse(BadResponse):
    """The peer closed the connection before the response was whole."""


class ResponseReader:
    """State of one response; `feed` it until `is_done`.

    `completion_tokens` is what the server's usage chunk says, None without one. `is_complete` means that the stream
    said `[DONE]`; a stream that ends without it was cut. `excerpt` holds the first bytes of an error.
    """

    __slots__ = (
        "_left_bytes",
        "_line",
        "_marker",
        "_marker_empty",
        "_rest",
        "completion_tokens",
        "excerpt",
        "is_chunked",
        "is_complete",
        "is_done",
        "keeps_alive",
        "status",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.completion_tokens: int | None = None
        self.excerpt = b""
        self.is_chunked = False
        self.is_complete = False
        self.is_done = False
        self.keeps_alive = True
        self._left_bytes: int | None = None
        self._rest = b""
        self._line = b""
        self._marker = b""
        self._marker_empty = b""

    @property
    def has_nothing(self) -> bool:
        """Whether no byte of the response came yet."""
        return self.status is None and not self._rest

    def feed(self, data: bytes) -> int:
        """Take the next bytes and return how many events with content they completed; raises BadResponse.

        A chunk counts when all of it is here, an event when its line is.
        """
        marker = self._marker
        if marker and data.endswith(b"\n\r\n") and not self._rest and not self._line:
            # Nearly every call: one whole chunk of nothing but events with content.
            count = data.count(marker) - data.count(self._marker_empty)
            if count and count == data.count(b"\n\n") and _is_one_chunk(data):
                return count
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self.status is None:
            body = self._read_head(data)
            if body is None:
                return 0
            data = body
        return self._read_body(data)

    def end(self) -> None:
        """Say that the peer closed the connection; raises CutResponse if the response needed more bytes."""
        self.keeps_alive = False
        if self.status is None or self.is_chunked or self._left_bytes:
            raise CutResponse("connection closed in the middle of a response")
        self.is_done = True

    def _read_head(self, data: bytes) -> bytes | None:
        """Parse the head and return the bytes behind it, None while it is incomplete; skips 1xx answers."""
        status = 100
        while status < 200:
            end = data.find(b"\r\n\r\n")
            if end < 0 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES:
                    raise BadResponse(f"response head exceeds {MAX_HEAD_BYTES} bytes")
                self._rest = data
                return None
            lines = data[:end].split(b"\r\n")
            version, _, after = lines[0].partition(b" ")
            if not version.startswith(b"HTTP/1.") or not _STATUS.match(after[:3]):
                raise BadResponse(f"not an HTTP response: {lines[0][:60]!r}")
            status = int(after[:3])
            data = data[end + 4 :]
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        self.status = status
        self.is_chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        connection = headers.get(b"connection", b"").lower()
        self.keeps_alive = version != b"HTTP/1.0" and connection != b"close"
        length = headers.get(b"content-length")
        if length is not None and not self.is_chunked:
            if not length.isdigit():
                raise BadResponse(f"bad content-length: {length[:20]!r}")
            self._left_bytes = int(length)
        return data

    def _read_body(self, data: bytes) -> int:
        if self.is_chunked:
            return self._scan_lines(self._take_chunks(data))
        if self._left_bytes is None:
            return self._scan_lines(data)
        body = data[: self._left_bytes]
        self._left_bytes -= len(body)
        if not self._left_bytes:
            self._finish(has_more=len(data) > len(body))
        return self._scan_lines(body)

    def _take_chunks(self, data: bytes) -> bytes:
        """Return the payload of the whole chunks in `data` and keep the rest for the next bytes."""
        payload: list[bytes] = []
        start = 0
        while not self.is_done:
            size_end = data.find(b"\r\n", start)
            if size_end < 0:
                break
            size_text = data[start:size_end].partition(b";")[0].strip()
            if not _HEX.match(size_text):
                raise BadResponse(f"bad chunk size: {size_text[:20]!r}")
            size = int(size_text, 16)
            if size > MAX_CHUNK_BYTES:
                raise BadResponse(f"chunk exceeds {MAX_CHUNK_BYTES} bytes")
            if size == 0:
                end = data.find(b"\r\n\r\n", size_end)
                if end < 0:
                    break
                self._finish(has_more=len(data) > end + 4)
                return b"".join(payload)
            next_start = size_end + 2 + size + 2
            if next_start > len(data):
                break
            if data[next_start - 2 : next_start] != b"\r\n":
                raise BadResponse("chunk is longer than its size says")
            payload.append(data[size_end + 2 : next_start - 2])
            start = next_start
        self._rest = data[start:]
        if len(self._rest) > MAX_CHUNK_BYTES + MAX_HEAD_BYTES:
            raise BadResponse("chunk head without an end")
        return b"".join(payload)

    def _finish(self, *, has_more: bool) -> None:
        self.is_done = True
        self.keeps_alive = self.keeps_alive and not has_more

    def _scan_lines(self, payload: bytes) -> int:
        """Scan the whole lines of `payload`, keeping a partial one; at the end of the response all of it."""
        if self._line:
            payload = self._line + payload
        cut = len(payload) if self.is_done else payload.rfind(b"\n") + 1
        self._line = payload[cut:]
        if len(self._line) > MAX_CHUNK_BYTES:
            raise BadResponse("event line without an end")
        return self._scan(payload[:cut]) if cut else 0

    def _scan(self, text: bytes) -> int:
        """Count events with content in whole lines; chunk sizes between them do no harm."""
        if self.status != 200:
            self.excerpt = (self.excerpt + text)[:MAX_EXCERPT_BYTES]
            return 0
        if b'"completion_tokens"' in text:
            for match in _USAGE.finditer(text):
                self.completion_tokens = int(match[1])
        if b'"error"' in text and _ERROR.search(text) and not self.excerpt:
            self.excerpt = text[:MAX_EXCERPT_BYTES]
        if b"[DONE]" in text and _DONE.search(text):
            self.is_complete = True
        if self._marker:
            count = text.count(self._marker) - text.count(self._marker_empty)
            if count:
                return count
        first = _CONTENT.search(text)
        if first is None:
            return 0
        self._marker = first[0]
        self._marker_empty = self._marker + b'"'
        return text.count(self._marker) - text.count(self._marker_empty)


def _is_one_chunk(data: bytes) -> bool:
    size_end = data.find(b"\r\n")
    try:
        return size_end + int(data[:size_end], 16) + 4 == len(data)
    except ValueError:
        return False
