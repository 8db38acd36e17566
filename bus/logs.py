"""I/O. Log lines of a process: to stderr, readable on a terminal, JSON anywhere else.

Use `log = structlog.get_logger()` and `log.info("request.finished", tokens_out=64)`: the event is `noun.past_verb`,
and no prompt, token or secret is ever a value.
"""

import asyncio
import atexit
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bus.config import LogConfig

_encoder = msgspec.json.Encoder(enc_hook=repr)


def set_up_logs(config: LogConfig, process: str) -> None:
    """Send all log lines of this process to stderr, marked with its name; call it once, at the start.

    Lines of libraries (`logging`) come through the same renderer, from `warning` upwards.
    """
    on_terminal = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    shared: list[Processor] = []
    if on_terminal:
        shared = [
            _add_process(process),
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
        ]
        renderer: Processor = structlog.dev.ConsoleRenderer(
            colors=has_colours(sys.stderr), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = _to_json(process)
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda: lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def has_colours(stream: TextIO) -> bool:
    """Say whether a stream is a terminal with colours, whose user does not say `NO_COLOR` (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _add_process(process: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add


def _to_json(process: str) -> Processor:
    """Return one processor for all that JSON lines need: each more costs every request a call."""

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        event["process"] = process
        event["level"] = "error" if method == "exception" else method
        event["timestamp"] = datetime.now(UTC)
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        return _encoder.encode(event).decode()

    return render


class _Lines:
    """Writes lines to a stream: those of one turn of an event loop at once, unless something is wrong.

    A write for each would cost a frontend as much as all else that its lines do.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] = []
        self._lock = threading.RLock()  # what ends while a line is held may log, too
        atexit.register(self._write_held)

    def info(self, line: str) -> None:
        """Write a line before the event loop's next turn is over."""
        with self._lock:
            self._held.append(line + "\n")
            is_first = len(self._held) == 1
        if is_first:
            try:
                asyncio.get_running_loop().call_soon(self._write_held)
            except RuntimeError:  # no loop runs in this thread
                self._write_held()

    debug = info

    def warning(self, line: str) -> None:
        """Write a line now."""
        with self._lock:
            self._held.append(line + "\n")
        self._write_held()

    error = critical = warning

    def _write_held(self) -> None:
        next_lines: list[str] = []
        with self._lock:
            lines, self._held = self._held, next_lines
            if lines:
                self._stream.write("".join(lines))
                self._stream.flush()
