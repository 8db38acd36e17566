"""I/O. Replay a recorded load (Mooncake trace): in virtual time on mock workers of its own, or live."""

import argparse
from pathlib import Path

from components.cli.options import add_config_options, at_least, read_config
from components.cli.parser import Parser, as_usage
from components.cli.terminal import find_broker, run_async, say

POLICIES = ("kv", "least_loaded", "power_of_two", "round_robin", "random")


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "virtual: real routers and workers, no waiting; engines are paced like NVIDIA Dynamo's mocker unless [mock]\n"
        "is configured. A number: the system at bus.url serves it in real time, so much faster than recorded:\n\n"
        "  busway up --engine mock --workers 2 --routers 1     and beside it:  busway replay TRACE --speed 1.0"
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="JSON lines: timestamp, lengths, hash_ids")
    parser.add_argument("--policy", choices=POLICIES, help="how routers choose (router.mode: kv)")
    parser.add_argument("--speed", type=_speed, metavar="virtual|X", help="virtual time, or X times as recorded")
    parser.add_argument(
        "--load", type=_factor, metavar="X", default=1.0, help="in virtual time: arrivals X times denser"
    )
    parser.add_argument("--workers", type=at_least(1), metavar="N", default=8, help="virtual workers (8)")
    parser.add_argument(
        "--routers", type=at_least(0), metavar="N", default=1, help="virtual routers; 0: the shared lane (1)"
    )
    parser.add_argument("--frontends", type=at_least(1), metavar="N", default=1, help="owners that share the load (1)")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="the first N requests only")
    parser.add_argument("--goal", metavar="TTFT,ITL", type=_goal, help="seconds that a good request takes (1.0,0.025)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Replay; exit code 1 when a request failed."""
    import msgspec

    from bus.logs import set_up_logs
    from components.replay.report import Goal
    from components.replay.run import ReplayOptions, bound_of, load_trace, replay_live, replay_virtual
    from components.replay.table import render_report
    from components.replay.trace import MAX_REQUESTS

    config = read_config(options, {"router.mode": options.policy, "log.level": "warning"})
    set_up_logs(config.log, "replay")
    goal = Goal() if options.goal is None else Goal(ttft_s=options.goal[0], itl_s=options.goal[1])
    asked = ReplayOptions(
        trace=options.trace,
        limit=options.limit or MAX_REQUESTS,
        num_workers=options.workers,
        num_routers=options.routers,
        num_frontends=options.frontends,
        load=options.speed or options.load,
        goal=goal,
    )
    with as_usage("replay"):
        requests = load_trace(asked)
    bound = None
    if options.speed:
        report = run_async(replay_live, find_broker(config), asked, requests)
    else:
        report = replay_virtual(config, asked, requests)
        bound = bound_of(config, asked, requests)
    if options.json:
        say(msgspec.json.format(msgspec.json.encode({"report": report, "bound": bound})).decode())
    else:
        say(render_report(report, bound))
    return 0 if not report.num_failed else 1


def _speed(text: str) -> float | None:
    return None if text == "virtual" else _factor(text)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0.001 and 1000")
    return value


def _goal(text: str) -> tuple[float, float]:
    ttft, _, itl = text.partition(",")
    try:
        return float(ttft), float(itl)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers of seconds, as in 1.0,0.025") from None
