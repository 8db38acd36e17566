"""Pure. What both sides of the comparison have in common."""

from collections.abc import Callable

import msgspec

from components.bench.report import Process

MODEL = "bench"

Write = Callable[[str], None]


class System(msgspec.Struct, frozen=True, kw_only=True):
    """A running system under test: where it listens and which processes it consists of."""

    name: str
    url: str
    model: str
    processes: tuple[Process, ...]


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast both mock engines step.

    `paced` lets Dynamo's mocker simulate its own step times and gives Busway's mock about the same ones: every token
    is an arrival of its own. `unpaced` lets both stream as fast as they can: tokens coalesce.
    ai-dynamo 1.6.1 documents `--speedup-ratio 0` as "no simulation delays", and measured it equals 1; a large ratio
    is what removes the delays.
    """

    name: str
    dynamo_speedup: str
    busway_settings: tuple[str, ...]


PACED = Pace(
    name="paced",
    dynamo_speedup="0",
    busway_settings=("mock.step_base_s=0.0055", "mock.prefill_token_s=0.000014", "mock.decode_sequence_s=0.00002"),
)
UNPACED = Pace(
    name="unpaced",
    dynamo_speedup="1000000",
    busway_settings=("mock.step_base_s=0.0", "mock.prefill_token_s=0.0", "mock.decode_sequence_s=0.0"),
)
PACES = {pace.name: pace for pace in (PACED, UNPACED)}
