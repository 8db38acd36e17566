"""I/O. The options that commands share, and the configuration that comes out of them."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from bus.config import Config, load_config
from bus.errors import BadConfig
from components.cli.parser import Parser


def port(text: str) -> int:
    """Read a number of a port, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)


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
