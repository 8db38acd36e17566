"""A mock engine with two bugs: one prompt kills its process within a step, another makes a step last for ever."""

import os
import signal
import threading

from components.engines import StepStats
from components.engines.batching.scheduler import Plan
from components.engines.mock import engine

FATAL, HANGING = 300, 301
"""Token ids that no ordinary prompt of the tests holds."""
DIES_AFTER_S = 0.01
"""Into the step: what a worker took is told within 5 ms, and nobody is to blame for what was not."""


class SickEngine(engine.MockEngine):
    def _price(self, plan: Plan) -> StepStats:
        prompts = [chunk.sequence.request.prompt for chunk in plan.prefill]
        if any(FATAL in prompt for prompt in prompts):
            threading.Timer(DIES_AFTER_S, os.kill, (os.getpid(), signal.SIGKILL)).start()
        stats = super()._price(plan)
        if any(HANGING in prompt for prompt in prompts):
            return StepStats(1e6, stats.prefill_tokens, stats.prefill_requests, stats.decode_requests, stats.kv_tokens)
        return stats


engine.MockEngine = SickEngine  # type: ignore[misc]
load_engine = engine.load_engine
