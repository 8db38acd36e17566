"""I/O. Run one frontend: HTTP and NATS doors in front of the workers on the bus."""

import argparse
import importlib

from components.cli.options import add_config_options, port, read_config
from components.cli.parser import Parser
from components.cli.terminal import run_async


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=port, help="port to listen on (8000)")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM."""
    from bus.logs import set_up_logs

    config = read_config(options, {"frontend.host": options.host, "frontend.port": options.port})
    set_up_logs(config.log, "frontend")
    # By name: processes meet on the bus and never import each other.
    run_async(importlib.import_module("frontend.service").run_frontend, config)
    return 0
