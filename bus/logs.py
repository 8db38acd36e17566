"""I/O. Log lines of a process: to stderr, readable on a terminal, JSON anywhere else.

Use `log = structlog.get_logger()` and `log.info("request.finished", tokens_out=64)`: the event is `noun.past_verb`,
and no prompt, token or secret is ever a value.
"""

import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

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
    shared: list[Processor]
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
        shared = [_add_json_fields(process)]
        renderer = structlog.processors.JSONRenderer(serializer=_to_json)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
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


def _add_json_fields(process: str) -> Processor:
    """Return one processor for what JSON lines have beside their event: each more costs every request a call."""

    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["process"] = process
        event["level"] = "error" if method == "exception" else method
        event["timestamp"] = datetime.now(UTC)
        return structlog.processors.format_exc_info(logger, method, event) if "exc_info" in event else event

    return add


def _to_json(event: Any, **_options: Callable[[Any], Any]) -> str:
    return _encoder.encode(event).decode()
