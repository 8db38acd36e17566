"""I/O. Check this machine and what runs on it; every fault comes with the command that mends it."""

import argparse
import sys

from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser
from components.cli.terminal import find_broker, find_stores, run_async, say

EXIT_FAILED = 1


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print one line a check; exit code 1 when one failed."""
    from msgspec.structs import replace

    from bus.logs import has_colours, set_up_logs
    from components.cli.checks import Verdict, check_broker, check_machine, check_system
    from components.cli.store_checks import check_stores

    config = read_config(options)
    system = find_stores(find_broker(config))
    set_up_logs(replace(config.log, level="error"), "doctor")
    num_failed, is_coloured = 0, has_colours(sys.stdout)
    for check in (check_machine, check_system):
        for finding in check(config):
            num_failed += finding.verdict is Verdict.FAIL
            say(finding.line(is_coloured))
    for look in (check_broker, check_stores):
        for finding in run_async(look, system):
            num_failed += finding.verdict is Verdict.FAIL
            say(finding.line(is_coloured))
    say(f"\n{num_failed} to mend" if num_failed else "\nall well")
    return EXIT_FAILED if num_failed else 0
