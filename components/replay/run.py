"""I/O. One replay from a trace file to its report, in virtual time or live."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bus.config import Config, MockConfig
from bus.errors import BadConfig
from components.replay.book import Arrival
from components.replay.bound import Bound, find_bound
from components.replay.clock import run_virtual
from components.replay.live import open_live
from components.replay.owner import Owner
from components.replay.report import Goal, Report, make_report
from components.replay.trace import (
    MAX_REQUESTS,
    PromptWriter,
    TraceRequest,
    arrivals_of,
    read_trace,
)
from components.replay.world import DYNAMO_MOCKER, VOCAB_SIZE, World, drive, replay


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to replay, and on what."""

    trace: Path
    limit: int = MAX_REQUESTS
    num_workers: int = 8
    num_routers: int = 1
    num_frontends: int = 1
    load: float = 1.0
    """Requests come so much faster than recorded."""
    goal: Goal = Goal()


def load_trace(options: ReplayOptions) -> list[TraceRequest]:
    """Read the trace file; raise `BadConfig` when it is none."""
    try:
        with options.trace.open("rb") as lines:
            return read_trace(lines, limit=options.limit, source=str(options.trace))
    except OSError as error:
        raise BadConfig(f"cannot read {options.trace}: {error.strerror or error}") from error


def choose_engine(config: Config) -> MockConfig:
    """Return the mock engine of a virtual replay: the configured one, and Dynamo's mocker where nothing is said."""
    return config.mock if config.mock != MockConfig() else DYNAMO_MOCKER


def replay_virtual(config: Config, options: ReplayOptions, requests: list[TraceRequest]) -> Report:
    """Replay in virtual time, on workers and routers inside this process."""
    world = World(
        num_workers=options.num_workers,
        num_routers=options.num_routers,
        num_frontends=options.num_frontends,
        engine=choose_engine(config),
        router=config.router,
    )
    arrivals = arrivals_of(requests, PromptWriter(VOCAB_SIZE), load=options.load)
    owners = run_virtual(lambda: replay(world, arrivals))
    return report_owners(owners, options.num_workers, options.goal)


async def replay_live(config: Config, options: ReplayOptions, requests: list[TraceRequest]) -> Report:
    """Replay in real time, on the system at `config.bus`."""
    async with open_live(config, options.num_frontends) as (owners, model, num_workers):
        arrivals: Iterable[Arrival] = arrivals_of(requests, PromptWriter(model.vocab_size), load=options.load)
        await drive(owners, arrivals)
        return report_owners(owners, num_workers, options.goal)


def report_owners(owners: list[Owner], num_workers: int, goal: Goal) -> Report:
    """Sum up what all owners saw."""
    gaps: Counter[int] = Counter()
    for owner in owners:
        gaps.update(owner.book.gaps)
    outcomes = [outcome for owner in owners for outcome in owner.book.outcomes]
    return make_report(outcomes, gaps, num_workers, goal)


def bound_of(config: Config, options: ReplayOptions, requests: list[TraceRequest]) -> Bound:
    """Return what the trace allows at best on the workers of a virtual replay."""
    return find_bound(requests, choose_engine(config), options.num_workers)
