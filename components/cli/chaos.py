"""I/O. Disturb the system that `busway up` runs here (kill, freeze, drain its processes) under load, and judge it."""

import argparse
import os
from pathlib import Path

from components.cli.options import above_zero, add_config_options, at_least, read_config
from components.cli.parser import Parser, UsageError
from components.cli.terminal import find_broker, run_async, say


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "the load is its own, with answers that it knows: each request must be answered once, with the same text.\n\n"
        "  busway up --engine mock --workers 3     and beside it:  busway chaos\n\n"
        "streams of a frontend end with it: kill-frontend and freeze-frontend are done only when asked for."
    )
    parser.add_argument(
        "--fault",
        metavar="NAME",
        action="append",
        default=[],
        help="kill-, freeze- or drain- and worker, router, nats or frontend; repeatable (all that fit, frontends not)",
    )
    parser.add_argument("--duration", type=above_zero, metavar="S", default=60.0, help="seconds of faults (60)")
    parser.add_argument("--every", type=above_zero, metavar="S", default=3.0, help="seconds between two faults (3)")
    parser.add_argument("--streams", type=at_least(1), metavar="N", default=32, help="requests at a time (32)")
    parser.add_argument("--tokens", type=at_least(1), metavar="N", default=64, help="output tokens a request (64)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the choice of faults (0)")
    parser.add_argument("--model", metavar="NAME", help="model to ask (the first that is served)")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Disturb and judge; exit code 1 when something was lost, doubled, wrong or leaked."""
    import msgspec
    from msgspec.structs import replace

    from bus.access import client_context
    from bus.errors import BadConfig
    from bus.logs import set_up_logs
    from components.chaos.ask import Target
    from components.chaos.faults import choose_faults
    from components.chaos.run import ChaosOptions, render, run_chaos
    from components.cli.address import split_url
    from components.cli.completions import KEY_VARIABLE, choose_model
    from components.supervisor.errors import CannotStart
    from components.supervisor.running import read_running

    config = read_config(options)
    set_up_logs(replace(config.log, level="error"), "chaos")
    running = read_running(Path(config.state_dir))
    if running is None:
        raise CannotStart(f"nothing runs in {config.state_dir} that could be disturbed", "busway up --engine mock")
    host, port = split_url(running.url)
    target = Target(
        host=host,
        port=port,
        model=choose_model(running.url, options.model, running.tls_ca),
        tls=client_context(running.tls_ca) if running.url.startswith("https:") else None,
        api_key=os.environ.get(KEY_VARIABLE, ""),
    )
    try:
        wanted = {
            "target": target,
            "faults": choose_faults(options.fault, [process.role for process in running.processes]),
            "duration_s": options.duration,
            "every_s": options.every,
            "streams": options.streams,
            "max_tokens": options.tokens,
            "seed": options.seed,
        }
        chaos = msgspec.convert(wanted, ChaosOptions, from_attributes=True)
    except BadConfig as error:
        raise UsageError(f"busway chaos: {error}", "busway chaos --help") from error
    except msgspec.ValidationError as error:
        told, _, field = str(error).rstrip("`").rpartition(" - at `$.")
        option = field.removesuffix("_s").removeprefix("max_")
        raise UsageError(f"busway chaos: --{option}: {told}", "busway chaos --help") from error
    report = run_async(run_chaos, find_broker(config), chaos, say)
    for line in render(report):
        say(line)
    return 0 if report.is_good else 1
