"""Pure. The lines of a batch's input file, what is wrong with them, and the lines of its output."""

from collections.abc import Iterator

import msgspec

from bus.messages.batches import LineError, TokensUsed

MAX_LINES = 50_000
MAX_LINE_BYTES = 2**20
MAX_ERRORS = 100
"""Errors of one file that are told; the file is read no further."""
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class BatchLine(msgspec.Struct, frozen=True):
    """One request of a batch."""

    custom_id: str
    body: msgspec.Raw
    url: str
    method: str = "POST"


class Answer(msgspec.Struct, frozen=True):
    """How a line was answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Reason(msgspec.Struct, frozen=True):
    """Why a line was not answered."""

    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: Answer | None
    error: Reason | None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details = _Details()
    completion_tokens_details: _Details = _Details()


class _Body(msgspec.Struct, frozen=True):
    usage: _Usage = _Usage()


class _Answered(msgspec.Struct, frozen=True):
    body: _Body


class _Output(msgspec.Struct, frozen=True):
    response: _Answered


_line = msgspec.json.Decoder(BatchLine)
_output = msgspec.json.Decoder(_Output)


def used_by(line: bytes) -> TokensUsed:
    """Return what the answer in a line of output took."""
    usage = _output.decode(line).response.body.usage
    return TokensUsed(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens_details.reasoning_tokens,
    )


class LineSplitter:
    """Cuts what comes in pieces into lines with their numbers; at most one line is held."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._number = 0
        self._is_skipping = False

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Yield each line that is complete, from 1, blank ones left out; None for one that is too long."""
        *whole, last = piece.split(b"\n")
        for part in whole:
            yield from self._end(part)
        self._hold(last)

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield the last line, if it has no line break."""
        if self._rest or self._is_skipping:
            yield from self._end(b"")

    def _hold(self, part: bytes) -> None:
        if self._is_skipping or len(self._rest) + len(part) > MAX_LINE_BYTES:
            self._is_skipping = True
            self._rest.clear()
        else:
            self._rest += part

    def _end(self, part: bytes) -> Iterator[tuple[int, bytes | None]]:
        self._hold(part)
        self._number += 1
        line = None if self._is_skipping else bytes(self._rest).strip()
        self._rest.clear()
        self._is_skipping = False
        if line is None or line:
            yield self._number, line


class Validator:
    """Looks at every line of a file before any of them is run."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ids: dict[str, int] = {}
        self.num_lines = 0
        self.errors: list[LineError] = []

    @property
    def is_full(self) -> bool:
        """Nothing more needs to be looked at."""
        return len(self.errors) >= MAX_ERRORS

    def check(self, number: int, line: bytes | None) -> None:
        """Look at one line."""
        self.num_lines += 1
        if self.num_lines > MAX_LINES:
            if self.num_lines == MAX_LINES + 1:
                self._add("too_many_requests", f"The file has more than {MAX_LINES} requests.", number)
            return
        if line is None:
            self._add("line_too_large", f"The line has more than {MAX_LINE_BYTES} bytes.", number)
            return
        try:
            given = _line.decode(line)
        except msgspec.ValidationError as error:
            self._add("invalid_request", f"The line is no request of a batch: {error}", number)
            return
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._add("invalid_json_line", f"The line is no JSON: {error}", number)
            return
        if not 1 <= len(given.custom_id) <= 512:
            self._add("invalid_custom_id", "'custom_id' has 1 to 512 characters.", number, "custom_id")
        elif (first := self._ids.setdefault(given.custom_id, number)) != number:
            self._add("duplicate_custom_id", f"Line {first} has the same 'custom_id'.", number, "custom_id")
        if given.method != "POST":
            self._add("invalid_method", f"'method' is {given.method[:20]!r}, not 'POST'.", number, "method")
        if given.url != self._endpoint:
            self._add("invalid_url", f"'url' is {given.url[:80]!r}, the batch's is {self._endpoint!r}.", number, "url")
        if bytes(given.body)[:1] != b"{":
            self._add("invalid_body", "'body' is no JSON object.", number, "body")

    def finish(self) -> None:
        """Say what is wrong with the file as a whole."""
        if not self.num_lines:
            self._add("empty_file", "The input file holds no request.", None)

    def _add(self, code: str, message: str, number: int | None, param: str | None = None) -> None:
        if not self.is_full:
            self.errors.append(LineError(code, message, number, param))


def read_line(line: bytes) -> BatchLine:
    """Return a line that was validated."""
    return _line.decode(line)


def answered(line_id: str, custom_id: str, status: int, body: bytes) -> bytes:
    """Render the line of a request that was answered, with an error or without."""
    return msgspec.json.encode(OutputLine(line_id, custom_id, Answer(status, line_id, msgspec.Raw(body)), None))


def unanswered(line_id: str, custom_id: str, code: str, message: str) -> bytes:
    """Render the line of a request that was not run."""
    return msgspec.json.encode(OutputLine(line_id, custom_id, None, Reason(code, message)))


def name_line(batch: str, number: int) -> str:
    """Return the id of a line, which numbers count from 1."""
    return f"batch_req_{batch.removeprefix('batch_')}_{number}"


def missing(line_id: str, custom_id: str, *, is_cancelled: bool) -> bytes:
    """Render the line of a request that was not run in time, or not before its batch was cancelled."""
    if is_cancelled:
        return unanswered(line_id, custom_id, "batch_cancelled", "The batch was cancelled before this request was run.")
    message = "This request could not be executed before the completion window expired."
    return unanswered(line_id, custom_id, "batch_expired", message)
