"""The same replay on a real broker, in real time: a world of its own there, and a system that runs already."""

import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from bus.config import BusConfig, Config
from bus.connection import open_bus
from bus.errors import NoWorker
from bus.protocol import Bus
from bus.subjects import Subjects
from components.replay.run import ReplayOptions, load_trace, replay_live
from components.replay.world import DYNAMO_MOCKER, World, open_world

TRACE = Path(__file__).parent / "trace.jsonl"

QUICK = msgspec.structs.replace(
    DYNAMO_MOCKER, prefill_token_s=0.0, prefill_token_squared_s=0.0, prefill_base_s=0.001, decode_base_s=0.0
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("num_routers", [0, 1])
async def test_a_running_system_is_loaded_through_its_own_broker(
    nats_url: str, namespace: str, num_routers: int
) -> None:
    config = Config(namespace=namespace, bus=BusConfig(url=nats_url))

    def connect(name: str) -> AbstractAsyncContextManager[Bus]:
        return open_bus(config.bus, Subjects(namespace), name=name)

    options = ReplayOptions(trace=TRACE, limit=30, num_frontends=2, load=10.0)
    requests = [msgspec.structs.replace(request, output_length=3) for request in load_trace(options)]
    async with open_world(World(num_workers=2, num_routers=num_routers, engine=QUICK), connect):
        started_at = time.monotonic()
        report = await replay_live(config, options, requests)
        elapsed_s = time.monotonic() - started_at
    assert (report.num_finished, report.num_failed, report.output_tokens) == (30, 0, 90)
    assert report.spread.requests >= 1.0
    # The last arrival is at 9 s of the trace, ten times as fast.
    assert report.duration_s >= 0.9
    assert elapsed_s >= 0.9


async def test_nothing_to_load_is_said_so(nats_url: str, namespace: str) -> None:
    config = Config(namespace=namespace, bus=BusConfig(url=nats_url))
    async with open_bus(config.bus, Subjects(namespace), name="setup") as bus:
        await bus.ensure()
    with pytest.raises(NoWorker, match="no worker serves anything"):
        await replay_live(config, ReplayOptions(trace=TRACE), [])
