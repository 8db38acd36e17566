"""Paths find their handlers, whatever they hold."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.doors.routes import Route, Router
from frontend.errors import MethodNotAllowed, NoSuchRoute


async def handle(call: Any) -> None: ...


ROUTER = Router(
    [
        Route("GET", "/v1/files", handle),
        Route("POST", "/v1/files", handle),
        Route("GET", "/v1/files/{id}", handle),
        Route("GET", "/v1/files/{id}/content", handle),
        Route("GET", "/v1/models/{model...}", handle),
        Route("POST", "/v1/messages", handle, "anthropic"),
        Route("POST", "/v1/messages/{id}", handle, "anthropic"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "pattern", "params"),
    [
        ("HEAD", "/v1/files", "/v1/files", {}),
        ("GET", "/v1/files/a", "/v1/files/{id}", {"id": "a"}),
        ("GET", "/v1/files/content/content", "/v1/files/{id}/content", {"id": "content"}),
        ("GET", "/v1/models/org/name", "/v1/models/{model...}", {"model": "org/name"}),
    ],
)
def test_paths_are_found(method: str, path: str, pattern: str, params: dict[str, str]) -> None:
    route, found = ROUTER.find(path, method)
    assert (route.pattern, found) == (pattern, params)


@pytest.mark.parametrize("path", ["/", "", "/v1/files/", "/v1/files/a/b", "/v1/models/", "/v1/filez", "//v1/files"])
def test_others_are_not(path: str) -> None:
    with pytest.raises(NoSuchRoute):
        ROUTER.find(path, "GET")


def test_a_near_miss_is_told() -> None:
    with pytest.raises(NoSuchRoute, match="Did you mean /v1/files"):
        ROUTER.find("/v1/file", "GET")


def test_a_method_that_is_missing_is_told_with_those_that_are_there() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        ROUTER.find("/v1/files", "PATCH")
    assert caught.value.allow == "GET, POST"


@given(st.text(max_size=50), st.text(max_size=10))
def test_whatever_comes_is_found_or_refused(path: str, method: str) -> None:
    try:
        ROUTER.find("/v1/" + path, method)
    except (NoSuchRoute, MethodNotAllowed):
        pass
    assert ROUTER.family_of("/v1/" + path) in ("openai", "anthropic")


def test_errors_have_the_family_of_their_path() -> None:
    assert ROUTER.family_of("/v1/messages") == ROUTER.family_of("/v1/messages/x") == "anthropic"
    assert ROUTER.family_of("/v1/files") == ROUTER.family_of("/nothing") == "openai"
