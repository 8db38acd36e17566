"""I/O. What this server can be asked: `/openapi.json`, and a page that shows it without anything from elsewhere."""

from collections.abc import Sequence
from importlib import resources

from frontend.doors.call import Call, Reply
from frontend.doors.routes import Doc, Route
from frontend.openapi import make_openapi


class Docs:
    """Renders the document once."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._document = b""
        self._page = b""

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", "/openapi.json", self.openapi, "plain"),
            Route("GET", "/", self.page, "plain", Doc(media="text/html")),
            Route("GET", "/docs", self.page, "plain", Doc(media="text/html")),
        ]

    async def openapi(self, call: Call) -> Reply:
        """Describe every route, in OpenAPI 3.1."""
        self._document = self._document or make_openapi([*self._routes, *self.routes()])
        return Reply(self._document)

    async def page(self, call: Call) -> Reply:
        """Show the description to people."""
        self._page = self._page or resources.files("frontend.doors").joinpath("docs.html").read_bytes()
        return Reply(self._page, headers=((b"content-type", b"text/html; charset=utf-8"),))
