"""I/O. The handlers of files: uploads go to the bus as they come in, downloads come from there as they are read."""

import msgspec

from bus.errors import BuswayError, InvalidRequest
from frontend.auth.identity import caller
from frontend.doors.call import Call, Reply, header_lines
from frontend.doors.routes import Doc, Route
from frontend.errors import BodyTooLarge
from frontend.files import MAX_FILE_BYTES, Files
from frontend.form import Form
from frontend.openai.files import MAX_PAGE, FileDeleted, FileShown, Listing, listing, show_file
from frontend.pages import cut, read_page, read_query

PURPOSES = ("batch",)
_FORM_BYTES = 64 * 2**10
"""What a form may take beside its file."""


class FileDoor:
    """Takes and shows files."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def routes(self) -> list[Route]:
        """Return the routes."""
        listed = Doc(answer=Listing[FileShown], query=("limit", "after", "order", "purpose"))
        return [
            Route("POST", "/v1/files", self.upload, doc=Doc(answer=FileShown, form=("file", "purpose"))),
            Route("GET", "/v1/files", self.list, doc=listed),
            Route("GET", "/v1/files/{file}", self.show, doc=Doc(answer=FileShown)),
            Route("DELETE", "/v1/files/{file}", self.delete, doc=Doc(answer=FileDeleted)),
            Route("GET", "/v1/files/{file}/content", self.download, doc=Doc(media="application/octet-stream")),
        ]

    async def upload(self, call: Call) -> Reply | None:
        """Store a file for a batch, as it comes in."""
        form = Form(call.find_header(b"content-type"))
        length = call.find_header(b"content-length")
        if length.isdigit() and int(length) > MAX_FILE_BYTES + _FORM_BYTES:
            raise BodyTooLarge(f"The body has {int(length)} bytes; files may have {MAX_FILE_BYTES}.")
        writer = self._files.begin(caller.get().tenant)
        try:
            num_bytes = 0
            while data := await call.exchange.receive():
                num_bytes += len(data)
                if num_bytes > MAX_FILE_BYTES + _FORM_BYTES:
                    raise BodyTooLarge(f"The body has more than the {MAX_FILE_BYTES} bytes that are taken.")
                await writer.write(form.feed(data))
            if call.exchange.is_lost:
                await writer.abandon()
                return None
            filename = _check(form)
            stored = await writer.finish(filename, form.fields["purpose"])
        except BuswayError:
            await writer.abandon()
            raise
        return Reply(msgspec.json.encode(show_file(writer.file, stored)))

    async def list(self, call: Call) -> Reply:
        """List files, the newest first."""
        query = read_query(call.exchange.query)
        page, purpose = read_page(query, default=MAX_PAGE, most=MAX_PAGE), query.get("purpose", "")
        found = await self._files.listed(caller.get().tenant)
        shown = [(file, show_file(file, stored)) for file, stored in found if purpose in ("", stored.purpose)]
        return Reply(listing(cut(shown, page)))

    async def show(self, call: Call) -> Reply:
        """Describe a file."""
        file = call.params["file"]
        return Reply(msgspec.json.encode(show_file(file, await self._files.find(caller.get().tenant, file))))

    async def delete(self, call: Call) -> Reply:
        """Delete a file."""
        file = call.params["file"]
        await self._files.delete(caller.get().tenant, file)
        return Reply(msgspec.json.encode(FileDeleted(file)))

    async def download(self, call: Call) -> Reply | None:
        """Send the content of a file, no faster than the client reads."""
        tenant, file = caller.get().tenant, call.params["file"]
        stored = await self._files.find(tenant, file)
        headers = (
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % stored.num_bytes),
            (b"content-disposition", b'attachment; filename="%b.jsonl"' % file.encode()),
            (b"x-request-id", call.shown_id),
        )
        exchange = call.exchange
        await exchange.send(exchange.head(200, header_lines(headers)))
        try:
            if exchange.method != "HEAD":
                async for piece in self._files.read(tenant, file, stored):
                    await exchange.send(piece)
            exchange.finish()
        except BuswayError:
            # The head is out: a body that is cut short is all that says so.
            exchange.abort()
        return None


def _check(form: Form) -> str:
    """Return the name of the file; raise `InvalidRequest` that names what is missing."""
    if not form.is_complete or form.filename is None:
        raise InvalidRequest("The form holds no 'file', or ends before it does.", param="file")
    purpose = form.fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"Invalid value for 'purpose': {' or '.join(PURPOSES)}.", param="purpose")
    return form.filename
