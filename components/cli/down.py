"""I/O. Stop the system that `busway up` runs here; what is in flight is finished first."""

import argparse
import os
import signal
import time
from pathlib import Path

from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser
from components.cli.terminal import say
from components.supervisor.errors import CannotStart
from components.supervisor.running import is_held, read_running


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Signal the supervisor and wait until it has gone."""
    config = read_config(options)
    state_dir = Path(config.state_dir)
    running = read_running(state_dir)
    if running is None:
        say(f"nothing runs in {state_dir}")
        return 0
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + config.worker.grace_s + 15
    while is_held(state_dir):
        if time.monotonic() > deadline:
            raise CannotStart(f"process {running.pid} does not stop", f"kill -9 {running.pid}")
        time.sleep(0.05)
    say("stopped")
    return 0
