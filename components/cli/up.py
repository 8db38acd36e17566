"""I/O. Start everything on this machine: the broker, frontends and workers, each restarted when it dies."""

import argparse

from components.cli.options import add_config_options, port, read_config
from components.cli.parser import Parser
from components.cli.terminal import run_async, say


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("--model", metavar="DIR", help="model directory (config.json, safetensors, tokenizer.json)")
    parser.add_argument("--engine", choices=["torch", "mock"], help="mock computes nothing: for load tests")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=port, help="port of the frontends (8000; 0: any free one)")
    parser.add_argument("--workers", type=int, metavar="N", help="number of workers (1)")
    parser.add_argument("--frontends", type=int, metavar="N", help="number of frontends, all on one port (1)")
    parser.add_argument("--routers", type=int, metavar="N", help="number of routers (0: workers take what comes)")
    parser.add_argument(
        "--secure", action="store_true", default=None, help="credentials for each process, TLS on the bus and HTTP"
    )
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Supervise until Ctrl-C."""
    from msgspec.structs import replace

    from bus.logs import set_up_logs
    from components.supervisor.service import run_up

    config = read_config(
        options,
        {
            "worker.model": options.model,
            "worker.engine": options.engine,
            "frontend.host": options.host,
            "frontend.port": options.port,
            "up.workers": options.workers,
            "up.frontends": options.frontends,
            "up.routers": options.routers,
            "up.secure": options.secure,
        },
    )
    set_up_logs(replace(config.log, level="warning"), "up")
    return run_async(run_up, config, say)
