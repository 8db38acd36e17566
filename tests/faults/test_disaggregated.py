"""Workers that prefill and workers that decode die at every point of the way from one to the other."""

from pathlib import Path
from typing import Any

import pytest

from components.chaos.history import check
from components.chaos.load import running_load
from components.chaos.slots import find_leaks
from tests.faults.flow import POINTS, open_flow

pytestmark = pytest.mark.anyio


async def test_whoever_dies_wherever_every_text_is_whole_and_every_block_returns(tmp_path: Path, measured: Any) -> None:
    async with open_flow(tmp_path) as flow:
        questions = await flow.questions(400, seed=1)
        async with running_load(flow.system.target(), questions, 12) as load:
            for point in POINTS:
                await flow.kill_at(point)
        verdict = check(load.answers)
        measured(
            "26", f"{len(load.answers)} answers over {len(POINTS)} kills, longest gap {verdict.longest_gap_s:.2f} s"
        )
        assert verdict.is_good, verdict
        assert not await find_leaks(flow.system.config)
