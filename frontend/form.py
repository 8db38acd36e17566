"""Pure. A multipart/form-data body as it comes in: small fields are kept, the bytes of the file are handed out."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bus.errors import Malformed
from frontend.errors import UnsupportedMediaType

MAX_FIELD_BYTES = 4096
MAX_PARTS = 16
MAX_NAME = 255


class Form:
    """Reads one body; its file is the part called `file`."""

    def __init__(self, content_type: bytes) -> None:
        """Raise `UnsupportedMediaType` when the header says otherwise, `Malformed` when it has no usable boundary."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            shown = kind.decode("latin-1")[:80] or "of no type"
            raise UnsupportedMediaType(f"The body is {shown}; send multipart/form-data with 'file' and 'purpose'.")
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 200:
            raise Malformed("The header content-type: multipart/form-data says no usable boundary.")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """None until the file has come."""
        self.is_complete = False
        self._data = bytearray()
        self._header = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._num_parts = 0
        self._field = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> bytes:
        """Read the next bytes of the body; return those of the file among them. Raises `Malformed`."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Malformed(f"The body is no valid multipart/form-data: {error}") from error
        content = bytes(self._data)
        self._data.clear()
        return content

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise Malformed(f"The form has more than {MAX_PARTS} parts.")
        self._headers = {}
        self._field.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.filename is not None:
                raise Malformed("The form has more than one 'file'.")
            self.filename = safe_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._data += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise Malformed(f"The field {self._name[:80]!r} has more than {MAX_FIELD_BYTES} bytes.")

    def _on_part_end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self.is_complete = True


def safe_name(name: str) -> str:
    """Return the last segment of what may be a path, printable and bounded: names are shown, and used nowhere."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in last if character.isprintable()).strip(". ")
    return shown[-MAX_NAME:] or "upload"
