import io
import json
import logging
import threading
from collections.abc import Iterator

import anyio
import pytest
import structlog

from bus.config import LogConfig
from bus.logs import set_up_logs

pytestmark = pytest.mark.anyio


class Stream(io.StringIO):
    """Counts writes."""

    num_writes = 0

    def write(self, text: str) -> int:
        self.num_writes += 1
        return super().write(text)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    settings, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    written = Stream()
    monkeypatch.setattr("sys.stderr", written)
    set_up_logs(LogConfig(format="json"), "tester")
    yield written
    structlog.configure(**settings)
    root.handlers[:] = handlers
    root.setLevel(level)


def events(stream: Stream) -> list[str]:
    return [json.loads(line)["event"] for line in stream.getvalue().splitlines()]


def test_a_line_says_who_wrote_it_when_and_how_bad_it_is(stream: Stream) -> None:
    structlog.get_logger().info("thing.happened", num=3)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp")
    assert line == {"event": "thing.happened", "num": 3, "process": "tester", "level": "info"}


async def test_lines_of_one_turn_are_one_write(stream: Stream) -> None:
    log = structlog.get_logger()
    log.info("first")
    log.info("second")
    assert not stream.num_writes
    await anyio.lowlevel.checkpoint()
    assert events(stream) == ["first", "second"]
    assert stream.num_writes == 1


async def test_what_is_wrong_is_written_at_once_behind_what_was_before(stream: Stream) -> None:
    log = structlog.get_logger()
    log.info("first")
    log.warning("second")
    assert events(stream) == ["first", "second"]


async def test_a_thread_writes_by_itself(stream: Stream) -> None:
    log = structlog.get_logger()
    log.info("first")
    thread = threading.Thread(target=log.info, args=("second",))
    thread.start()
    thread.join()
    await anyio.lowlevel.checkpoint()
    assert events(stream) == ["first", "second"]


async def test_an_exception_is_told_with_its_traceback(stream: Stream) -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        structlog.get_logger().error("thing.failed", exc_info=error)
    assert "ValueError: broken" in json.loads(stream.getvalue())["exception"]
