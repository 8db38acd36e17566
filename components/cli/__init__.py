"""The command line: one module for each command, imported when it is called."""

from components.cli.entry import main

__all__ = ["main"]
