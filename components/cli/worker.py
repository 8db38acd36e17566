"""I/O. Run one worker: an inference engine that takes its work from the bus. Or list those that run; change a role."""

import argparse
import importlib
import os
import sys

from components.cli.options import add_config_options, port, read_config
from components.cli.parser import Parser
from components.cli.terminal import find_broker, run_async


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = "busway worker set-role WORKER ROLE...    what WORKER serves from now on: prefill, decode, both"
    parser.add_argument("action", nargs="*", help="nothing: run a worker; ls: list them; or set-role WORKER ROLE...")
    parser.add_argument("--model", metavar="DIR", help="model directory (config.json, safetensors, tokenizer.json)")
    parser.add_argument("--engine", choices=["torch", "mock"], help="mock computes nothing: for load tests")
    parser.add_argument("--metrics-port", type=port, metavar="PORT", help="serve Prometheus metrics on 127.0.0.1:PORT")
    parser.add_argument("--spare", action="store_true", help=argparse.SUPPRESS)
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM."""
    if options.action:
        return _manage(options)
    import structlog

    from bus.logs import set_up_logs
    from bus.metrics import expose
    from components.worker.service import ENGINES, run_worker

    config = read_config(options, {"worker.model": options.model, "worker.engine": options.engine})
    set_up_logs(config.log, "worker")
    if options.spare:
        importlib.import_module(f"{ENGINES[config.worker.engine]}.load")
        structlog.get_logger().info("spare.waiting")
        if not _wait_for_turn():
            return 0
    with expose(options.metrics_port):
        run_async(run_worker, config)
    return 0


def _manage(options: argparse.Namespace) -> int:
    from msgspec.structs import replace

    from bus.logs import set_up_logs
    from components.cli.worker_roles import list_workers, read_words, set_roles

    change = read_words(options.action)
    config = find_broker(read_config(options))
    set_up_logs(replace(config.log, level="warning"), "worker")
    if change is None:
        run_async(list_workers, config)
    else:
        run_async(set_roles, config, *change)
    return 0


def _wait_for_turn() -> bool:
    """Wait, all imports done, for the supervisor's line with the log file to write to; False: it has gone."""
    log_path = sys.stdin.readline().strip()
    if not log_path:
        return False
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return True
