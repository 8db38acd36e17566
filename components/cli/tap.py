"""I/O. Print what passes on the bus, decoded by subject: times, sizes, and every field that a person can read."""

import argparse
import time

import anyio
from msgspec.structs import replace

from bus.config import Config
from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser, UsageError
from components.cli.terminal import find_broker, run_async, say

MAX_QUEUED = 10_000


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "quote the pattern, or the shell takes > and * for itself:\n\n"
        "  busway tap 'busway.>'           everything\n"
        "  busway tap 'busway.out.v1.>'    tokens\n"
        "  busway tap '$KV.>'              buckets: who is there"
    )
    parser.add_argument("pattern", nargs="*", help="subject with wildcards (everything of the namespace)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--count", type=int, metavar="N", help="stop after N messages")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print until Ctrl-C, or until enough."""
    from bus.logs import set_up_logs

    if options.count is not None and options.count < 1:
        raise UsageError(f"--count {options.count}: at least 1, or leave it out", "busway tap --count 1")
    config = find_broker(read_config(options))
    set_up_logs(replace(config.log, level="warning"), "tap")
    pattern = check_pattern(options.pattern, config.namespace)
    run_async(_tap, config, pattern, options.json, options.count)
    return 0


def check_pattern(words: list[str], namespace: str) -> str:
    """Return the pattern to subscribe to; raise `UsageError` when the shell got hold of it first."""
    pattern = words[0] if words else f"{namespace}.>"
    hint = f"busway tap '{namespace}.>'   (with the quotes)"
    if len(words) > 1:
        raise UsageError(f"one pattern is tapped, not {len(words)}: did the shell put file names for a wildcard?", hint)
    if not pattern or pattern.endswith(".") or ".." in pattern or any(c.isspace() for c in pattern):
        raise UsageError(f"{pattern!r} is no subject: did the shell take the `>`?", hint)
    return pattern


async def _tap(config: Config, pattern: str, as_json: bool, count: int | None) -> None:
    from bus.connection import open_bus
    from bus.protocol import Incoming
    from bus.subjects import Subjects
    from components.cli.readable import to_json, to_line

    subjects = Subjects(config.namespace)
    send, receive = anyio.create_memory_object_stream[tuple[float, Incoming]](MAX_QUEUED)
    num_dropped = 0

    def keep(incoming: Incoming) -> None:
        nonlocal num_dropped
        try:
            send.send_nowait((time.time(), incoming))
        except anyio.WouldBlock:
            num_dropped += 1

    async with open_bus(config.bus, subjects, name="tap") as bus, receive:
        bus.subscribe(pattern, keep)
        num_shown = 0
        async for at, incoming in receive:
            say(to_json(at, incoming, subjects) if as_json else to_line(at, incoming, subjects))
            num_shown += 1
            if num_dropped:
                say(f"({num_dropped} messages came faster than they could be printed)")
                num_dropped = 0
            if num_shown == count:
                return
