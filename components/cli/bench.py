"""I/O. Load the system that `busway up` runs here, and print CPU per token of each process, TTFT and ITL."""

import argparse
import os
from pathlib import Path

from components.cli.options import above_zero, add_config_options, at_least, read_config
from components.cli.parser import Parser
from components.cli.terminal import say


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "an honest measurement of Busway itself (not of a model) uses the mock engine on an idle machine:\n\n"
        "  busway up --engine mock     and beside it:  busway bench"
    )
    parser.add_argument(
        "--streams", type=at_least(1), metavar="N", action="append", help="concurrency, repeatable (32, 256)"
    )
    parser.add_argument("--duration", type=above_zero, metavar="S", default=10.0, help="seconds a run (10)")
    parser.add_argument("--tokens", type=at_least(1), metavar="N", default=64, help="output tokens a request (64)")
    parser.add_argument("--words", type=at_least(1), metavar="N", default=256, help="words a prompt (256)")
    parser.add_argument("--model", metavar="NAME", help="model to ask (the first that is served)")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Bench; exit code 1 when nothing runs or nothing answers."""
    from components.bench.report import Process
    from components.bench.run import BenchOptions, bench
    from components.cli.completions import KEY_VARIABLE, choose_model
    from components.supervisor.errors import CannotStart
    from components.supervisor.running import read_running

    config = read_config(options)
    running = read_running(Path(config.state_dir))
    if running is None:
        raise CannotStart(f"nothing runs in {config.state_dir} that could be measured", "busway up --engine mock")
    bench(
        BenchOptions(
            url=running.url,
            tls_ca=running.tls_ca,
            model=choose_model(running.url, options.model, running.tls_ca),
            streams=tuple(options.streams or (32, 256)),
            duration_s=options.duration,
            max_tokens=options.tokens,
            prompt_words=options.words,
            api_key=os.environ.get(KEY_VARIABLE, ""),
        ),
        [Process(name=p.name, role=p.role, pid=p.pid) for p in running.processes if p.role != "spare"],
        say,
    )
    return 0
