"""I/O. `busway`: finds the command, runs it, and turns every expected failure into one line and a way on."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol, cast

from bus.version import VERSION
from components.cli.parser import Parser, UsageError, did_you_mean

GROUPS = {
    "Serve": {
        "up": "start all of it here: broker, frontend and workers, supervised",
        "down": "stop what `up` started",
        "frontend": "run one frontend",
        "worker": "run one worker",
        "router": "run one router: requests go where their prefix is cached",
        "run": "run your own component: busway run module:Class",
    },
    "Use": {
        "chat": "talk to a model; shows time to first token and tokens/s",
        "bench": "load the running system, show CPU per token of each process",
        "replay": "a recorded load in virtual time, or live: latencies, prefix reuse",
        "cache": "KV blocks in Redis and S3: list, measure, pin, drop, collect",
        "keys": "API keys: add, list, remove",
        "chaos": "kill, freeze and drain what runs here under load, and judge",
    },
    "Look": {
        "explain": "what would become of a request: prompt, tokens, blocks, worker",
        "tap": "print what passes on the bus, readable",
        "subjects": "the catalogue of subjects and message schemas",
        "config": "the configuration as it resolves, with explanations",
        "doctor": "check this machine and the running system, with the mend for each fault",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}

EXIT_FAILED = 1
EXIT_USAGE = 2
"""Wrong command line or configuration: starting again cannot help."""


class Command(Protocol):
    """What each module of a command offers."""

    def add_arguments(self, parser: Parser) -> None:
        """Declare the options."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it; return the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `busway` with these arguments (those of the process by default) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except UsageError as error:
        return _fail(str(error), error.hint, EXIT_USAGE)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`busway tap | head`); Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if is_debugging:
            raise
        return _explain(error)


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"busway {VERSION}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = ["--help", "--version"] if kind == "option" else list(COMMANDS)
        if name in ("--config", "--set"):
            raise UsageError(f"{name} stands before the command", f"busway COMMAND {name} ...")
        raise UsageError(f"unknown {kind} {name}{did_you_mean(name, known)}", "busway --help")
    module = importlib.import_module(f"components.cli.{name}")
    parser = Parser(name, (module.__doc__ or "").removeprefix("I/O. "))
    command = cast(Command, module)
    command.add_arguments(parser)
    return command.run(parser.parse(words[1:]))


def help_text() -> str:
    """Return the text of `busway --help`: one screen."""
    lines = ["busway: serve large language models over many workers, event-driven on NATS", ""]
    lines += ["usage: busway COMMAND [options]     (busway COMMAND --help: the options of one)", ""]
    for group, commands in GROUPS.items():
        lines.append(f"{group}:")
        lines += [f"  {name:<10} {summary}" for name, summary in commands.items()]
        lines.append("")
    lines += [
        "Every command that starts or reaches something also takes:",
        "  --config FILE     a TOML file (configs/*.toml are examples)",
        "  --set KEY=VALUE   one setting, as often as needed: --set worker.slots=8",
        "  --debug           a traceback when it fails",
        "",
        "First time: busway up     then, beside it: busway chat",
    ]
    return "\n".join(lines)


def _explain(error: Exception) -> int:
    """Print an expected failure as one line and the next command; let a bug be seen as one."""
    from bus.errors import BadConfig, BusUnavailable, BuswayError

    if isinstance(error, OSError) and error.filename is not None:
        return _fail(f"cannot use {error.filename}: {error.strerror}", "busway doctor", EXIT_FAILED)
    if not isinstance(error, BuswayError):
        if not sys.stderr.isatty():  # a log file: nobody can ask again
            traceback.print_exception(error)
        kind = type(error).__name__
        return _fail(
            f"{kind}: {error} (a bug: nobody expected it)", "the same with --debug, for a traceback", EXIT_FAILED
        )
    if isinstance(error, BadConfig):
        return _fail(str(error), getattr(error, "hint", "busway config"), EXIT_USAGE)
    hint = "busway doctor" + (", and `busway up` if nothing runs yet" if isinstance(error, BusUnavailable) else "")
    return _fail(str(error), getattr(error, "hint", hint), EXIT_FAILED)


def _fail(message: str, hint: str, code: int) -> int:
    print(f"error: {message}\n  try: {hint}", file=sys.stderr)
    return code
