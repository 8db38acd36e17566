"""A small run of the simulation; `python -m tests.sim --seeds 1000` is the large one."""

import os
import subprocess
import sys

import pytest

from tests.sim.__main__ import explain
from tests.sim.run import run_seed
from tests.sim.sometimes import FAULTS, PATHS, never

FAULTS_S = 20.0


@pytest.mark.parametrize("seed", [3, 4, 6, 9])
def test_nothing_is_lost_whatever_breaks(seed: int) -> None:
    print(f"seed {seed}")
    verdict = run_seed(seed, faults_s=FAULTS_S)
    assert verdict.num_requests > FAULTS_S
    assert not verdict.wrong, "\n" + explain(verdict, FAULTS_S)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_run_repeats_exactly_whatever_the_hash_seed(seed: int) -> None:
    faults_s = 8.0
    here = run_seed(seed, faults_s=faults_s)
    # The one has a store that workers share, the other has none.
    command = [sys.executable, "-m", "tests.sim", "--first", str(seed), "--seeds", "1", "--faults-s", str(faults_s)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert here.digest in there.stdout, there.stdout + there.stderr
    assert run_seed(seed + 1, faults_s=faults_s).digest != here.digest


def test_what_never_happened_is_told() -> None:
    everything = dict.fromkeys((*FAULTS, *PATHS), 1)
    assert never([everything]) == []
    lacking = {**everything, "path.any": 0}
    assert never([lacking, lacking]) == [f"never happened: path.any: {PATHS['path.any']}"]
    assert never([lacking, everything]) == []
