"""I/O. What goes wrong with messages: counted always, logged once per family and kind."""

import structlog

from bus.metrics import BUS_HANDLER_ERRORS, MALFORMED_MESSAGES
from bus.subjects import Subjects

log = structlog.get_logger()

MAX_KINDS = 1000
"""Kinds that are remembered as logged; what comes after them is counted only."""


class Troubles:
    """The troubles of one connection."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self._logged: set[tuple[str, str]] = set()

    def malformed(self, subject: str, error: Exception) -> None:
        """A message could not be read."""
        family = self._subjects.family(subject)
        MALFORMED_MESSAGES.labels(family=family).inc()
        if self._is_new(family, type(error).__name__):
            log.warning("message.malformed", family=family, subject=subject[:80], reason=str(error)[:200])

    def handler_failed(self, subject: str, error: Exception) -> None:
        """A handler raised."""
        family = self._subjects.family(subject)
        BUS_HANDLER_ERRORS.labels(family=family).inc()
        if self._is_new(family, type(error).__qualname__):
            log.error("handler.failed", family=family, subject=subject[:80], exc_info=error)

    def refused(self, error: Exception) -> None:
        """The broker does not let us do something."""
        if self._is_new("refused", str(error)[:200]):
            log.error("bus.refused", reason=str(error)[:200])

    def _is_new(self, family: str, kind: str) -> bool:
        if (family, kind) in self._logged or len(self._logged) >= MAX_KINDS:
            return False
        self._logged.add((family, kind))
        return True
