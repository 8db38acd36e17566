"""I/O. Run one router: requests go to the worker where they cost least."""

import argparse

from components.cli.options import add_config_options, port, read_config
from components.cli.parser import Parser
from components.cli.terminal import find_broker, run_async


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    modes = ["kv", "least_loaded", "power_of_two", "round_robin", "random"]
    parser.add_argument("--mode", choices=modes, help="kv: with what workers have cached; the others for comparison")
    parser.add_argument(
        "--pick-port", type=port, metavar="PORT", help="answer gateways on http://127.0.0.1:PORT/v1/pick"
    )
    parser.add_argument("--metrics-port", type=port, metavar="PORT", help="serve Prometheus metrics on 127.0.0.1:PORT")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Route until SIGTERM."""
    from bus.logs import set_up_logs
    from bus.metrics import expose
    from components.router.service import run_router

    config = find_broker(read_config(options, {"router.mode": options.mode, "router.pick_port": options.pick_port}))
    set_up_logs(config.log, "router")
    with expose(options.metrics_port):
        run_async(run_router, config)
    return 0
