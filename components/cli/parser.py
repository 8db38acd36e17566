"""Pure. argparse with answers that help: every mistake is a `UsageError` with what was meant."""

import argparse
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from bus.errors import BuswayError


class UsageError(Exception):
    """The command line is wrong; `hint` is the next command to type."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """Parser of one command. Options are written out in full: an abbreviation may mean another one tomorrow."""

    def __init__(self, command: str, summary: str) -> None:
        super().__init__(
            prog=f"busway {command}",
            description=summary,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=100),
        )

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`."""
        raise UsageError(message.removeprefix("argument "), f"{self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of `arguments`; raise `UsageError` that suggests the option that was meant."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].partition("=")[0]
            if not name.startswith("-"):
                self.error(f"unexpected argument {name!r}")
            self.error(f"unknown option {name}{did_you_mean(name, self._option_string_actions)}")
        return options


@contextmanager
def as_usage(command: str) -> Iterator[None]:
    """Let what is refused within be a `UsageError` of that command: its arguments are at fault."""
    try:
        yield
    except BuswayError as error:
        raise UsageError(str(error), f"busway {command} --help") from error


def did_you_mean(word: str, known: Sequence[str] | dict[str, argparse.Action]) -> str:
    """Return `; did you mean ...?` when something known is close, else nothing."""
    starts = [one for one in known if len(word) > 3 and one.startswith(word)]
    close = starts[:1] or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
