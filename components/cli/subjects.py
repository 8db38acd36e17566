"""I/O. Print the catalogue: every subject, who sends it to whom, and the JSON schema of its messages."""

import argparse

from components.cli.parser import Parser, as_usage
from components.cli.terminal import say


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--schema", metavar="NAME", nargs="?", const="", help="JSON schema of one message, or of all")
    parser.add_argument("--markdown", action="store_true", help="the table as README.md has it")


def run(options: argparse.Namespace) -> int:
    """Print."""
    import msgspec

    from bus.catalogue import CHANNELS, find_message, markdown_table, message_types, schema

    if options.schema is not None:
        with as_usage("subjects"):
            types = [find_message(options.schema)] if options.schema else message_types()
        say(msgspec.json.format(msgspec.json.encode(schema(types)), indent=2).decode())
    elif options.markdown:
        say(markdown_table())
    else:
        say("All subjects start with the namespace (`busway.`); keys live in the bucket that is named.\n")
        for channel in CHANNELS:
            messages = ", ".join(t.__name__ for t in channel.messages) or "JSON"
            say(f"{channel.pattern}\n    {messages}; {channel.carrier}; {channel.sender} -> {channel.receiver}")
            say(f"    {channel.purpose}")
        say("\nOne message in full: busway subjects --schema StepBatch")
    return 0
