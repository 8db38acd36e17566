"""I/O. Print the configuration as it resolves: defaults, then the file, the environment, and --set."""

import argparse

from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser, UsageError, did_you_mean
from components.cli.terminal import say


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("key", nargs="?", help="one key or section, as in worker.slots")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print all of it as TOML with comments, or what belongs to one key."""
    from bus.toml import render_toml
    from components.cli.config_keys import explain_keys

    config, comments = read_config(options), explain_keys()
    if options.key is None:
        say(render_toml(config, comments))
        return 0
    names = [name for name in comments if name == options.key or name.startswith(f"{options.key}.")]
    if not names:
        raise UsageError(f"no key {options.key}{did_you_mean(options.key, list(comments))}", "busway config")
    for name in names:
        value: object = config
        for part in name.split("."):
            value = getattr(value, part)
        if not hasattr(value, "__struct_fields__"):
            say(f"{name} = {value!r}" + (f"\n    {comments[name]}" if comments[name] else ""))
    return 0
