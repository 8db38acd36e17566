"""I/O. Run a component of your own: configuration, connection, retries and metrics come with it."""

import argparse

from bus.component import ComponentSpec, load_component
from bus.config import Config
from components.cli.options import add_config_options, port, read_config
from components.cli.parser import Parser, as_usage
from components.cli.terminal import find_broker, run_async


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "a component is a class with a subject and a typed handler; components/meter.py is one:\n\n"
        "  busway run components.meter:UsageMeter\n"
        "  busway run mine:Alarm --set component.limit=80"
    )
    parser.add_argument("component", metavar="MODULE:CLASS")
    parser.add_argument("--metrics-port", type=port, metavar="PORT", help="serve Prometheus metrics on 127.0.0.1:PORT")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the component until SIGTERM."""
    from bus.logs import set_up_logs

    with as_usage("run"):
        spec = load_component(options.component)
    config = find_broker(read_config(options))
    set_up_logs(config.log, spec.name)
    run_async(_run, spec, config, options.metrics_port)
    return 0


async def _run(spec: ComponentSpec, config: Config, metrics_port: int | None) -> None:
    from bus.connection import open_bus
    from bus.lifecycle import serve
    from bus.metrics import expose
    from bus.registry import new_id
    from bus.scrape import answer_scrapes
    from bus.subjects import Subjects
    from components.runner import ComponentRunner, readable_streams

    subjects = Subjects(config.namespace)
    with expose(metrics_port):
        async with open_bus(config.bus, subjects, name=spec.name) as bus:
            await bus.ensure()
            with answer_scrapes(bus, new_id(spec.name)):
                await serve(ComponentRunner(spec, config.component, bus, readable_streams(subjects)))
