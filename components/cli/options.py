"""I/O. The options that commands share, and the configuration that comes out of them."""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bus.config import Config, load_config
from bus.errors import BadConfig
from components.cli.parser import Parser


def port(text: str) -> int:
    """Read a number of a port, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not smaller, for argparse."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
        return value

    return read


def above_zero(text: str) -> float:
    """Read a number of seconds, or of things in one, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def add_config_options(parser: Parser) -> None:
    """Add `--config` and `--set`."""
    group = parser.add_argument_group("configuration (defaults < file < BUSWAY__SECTION__KEY < --set)")
    group.add_argument("--config", metavar="FILE", help="TOML file")
    group.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as in worker.slots=8")


def read_config(options: argparse.Namespace, friendly: Mapping[str, object] | None = None) -> Config:
    """Merge file, environment, `friendly` settings (those that are not None) and `--set`; raise `BadConfig`."""
    settings = [f"{key}={json.dumps(value)}" for key, value in (friendly or {}).items() if value is not None]
    text, source = "", "config"
    if options.config:
        source = options.config
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadConfig(f"cannot read {source}: {error}") from error
    return load_config(text, os.environ, [*settings, *options.set], source=source)
