"""The small chat client: pieces as they come, and every way in which an answer can fail."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bus.errors import BadConfig, UnknownModel
from components.cli.completions import ChatFailed, Figures, Message, Target, choose_model, stream_chat


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            self.rfile.read(length)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(status: int, body: bytes) -> tuple[str, Figures]:
    figures = Figures()
    with answering(status, body) as url:
        pieces = list(stream_chat(Target(url, "m", 0.0), [Message("user", "hello")], figures))
    return "".join(f"<{text}>" if is_thought else text for text, is_thought in pieces), figures


STREAM = b"""data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}

: keep-alive

data: {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": null}]}

data: {"choices": [{"index": 0, "delta": {"content": "lo"}}]}

data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

data: {"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}}

data: [DONE]

"""


def test_the_answer_comes_in_pieces_with_its_figures() -> None:
    text, figures = ask(200, STREAM)
    assert text == "Hello"
    assert (figures.num_chunks, figures.output_tokens, figures.cached_tokens) == (2, 5, 3)
    assert figures.started < figures.first <= figures.ended
    assert "5 tokens" in figures.summary()
    assert "3 prompt tokens from the cache" in figures.summary()


def test_thoughts_are_told_apart_and_count() -> None:
    thought = b'data: {"choices": [{"delta": {"reasoning_content": "Hm", "reasoning": "Hm"}}]}'
    text, figures = ask(200, STREAM.replace(b": keep-alive", thought))
    assert (text, figures.num_chunks) == ("<Hm>Hello", 3)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b'{"error": {"message": "model \'x\' not found"}}', "404: model 'x' not found"),
        (503, b"busy", "503: busy"),
        (500, b"\xff\xfe", "500"),
        (200, b"", "without an end"),
        (200, b'data: {"choices": []}\n\n', "without an end"),
        (200, b'data: {"error": {"message": "worker died"}}\n\ndata: [DONE]\n\n', "worker died"),
        (200, b"data: {nonsense\n\n", "no chunk"),
    ],
)
def test_a_failed_answer_says_why(status: int, body: bytes, says: str) -> None:
    with pytest.raises(ChatFailed, match=says):
        ask(status, body)


def test_an_answer_without_tokens_has_no_figures() -> None:
    text, figures = ask(200, b"data: [DONE]\n\n")
    assert (text, figures.summary()) == ("", "")


def test_a_model_is_chosen_from_those_served() -> None:
    with answering(200, b'{"data": [{"id": "tiny"}, {"id": "large"}]}') as url:
        assert choose_model(url, None) == "tiny"
        assert choose_model(url, "large") == "large"
        with pytest.raises(UnknownModel, match="'tniy' not found; served: tiny, large"):
            choose_model(url, "tniy")
    with answering(200, b'{"data": []}') as url, pytest.raises(UnknownModel, match="no worker is ready"):
        choose_model(url, None)
    with answering(200, b"<html>") as url, pytest.raises(ChatFailed, match="no Busway frontend"):
        choose_model(url, None)


@pytest.mark.parametrize("url", ["", "localhost", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    with pytest.raises(BadConfig, match="URL"):
        choose_model(url, None)
