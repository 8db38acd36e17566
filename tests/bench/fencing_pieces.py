"""What detection, fencing and bookkeeping cost a token, piece by piece, in one process: for busy machines.

The ways of a token through the frontend's owner state and through a worker's books, with the checks and without them
(`unfenced/`), as CPU time; the least of many repeats. Heartbeats and ticks are spread over the tokens of their period.
`python -m tests.bench.fencing_pieces`; `tests/bench/fencing.py` measures whole systems.
"""

import time
from array import array
from collections.abc import Callable
from itertools import count
from typing import Any

from bus.codec import codec, encode
from bus.messages.base import pack_u32
from bus.messages.fleet import WorkerLoad
from bus.messages.inference import Sampling, StepBatch, Stopping
from bus.metrics import DoublingHistogram
from components.engines import EngineSpec, Step, StepStats
from components.worker.canary import Canary
from components.worker.sent import Sent
from frontend.admission import Admission
from frontend.fleet import Fleet
from frontend.request import Generation, Request
from frontend.requests import Requests
from tests.bench.unfenced.sitecustomize import take

STREAMS, STEPS = 32, 5
"""Rows of a message: so many steps of 6 ms go together."""
NUM_BATCHES, REPEATS = 40, 60
STEP_S = 0.006
TOKENS_PER_S = STREAMS / STEP_S
BEATS_PER_S = TICKS_PER_S = 4


class Gaps(DoublingHistogram):
    """A histogram outside the registry."""

    def __init__(self) -> None:
        self.counts = [0] * 64
        self.sum = 0.0


class Sink:
    """An output that costs nothing."""

    def push(self, token: int) -> None:
        pass


def make_requests() -> tuple[Requests, list[Request]]:
    """Return the owner state of as many streams, all of them decoding."""
    requests = Requests(max_requests=4096, max_attempts=5, gaps=Gaps(), tickets=count(1))
    output: Any = Sink()
    generation = Generation(
        model="m", model_slug="m", prompt=pack_u32([1]), sampling=Sampling(), stopping=Stopping(max_tokens=10**6)
    )
    opened = [Request(str(number), generation, output) for number in range(STREAMS)]
    for request in opened:
        requests.open(request, 0.0)
        request.worker = "w"
    return requests, opened


def make_batches() -> list[StepBatch]:
    """Return messages as a worker sends them, from the first token on."""
    batches = []
    for seq in range(NUM_BATCHES):
        rows = [(ticket, STEPS * seq + step) for step in range(STEPS) for ticket in range(1, STREAMS + 1)]
        tickets, offsets = (array("I", column).tobytes() for column in zip(*rows, strict=True))
        batches.append(StepBatch(worker="w", seq=seq, tickets=tickets, offsets=offsets, tokens=offsets))
    return batches


def least_us(run: Callable[[], Callable[[], None]], num_tokens: float) -> float:
    """Return the least CPU time of a call, in microseconds a token; `run` prepares each call."""
    least = float("inf")
    for _ in range(REPEATS):
        call = run()
        began_ns = time.process_time_ns()
        call()
        least = min(least, time.process_time_ns() - began_ns)
    return least / 1e3 / num_tokens


def through_owner(function: Callable[[Requests, StepBatch, float], object]) -> float:
    """Return what the frontend's owner state takes for a token."""
    batches = make_batches()

    def prepare() -> Callable[[], None]:
        requests, _ = make_requests()

        def call() -> None:
            for number, batch in enumerate(batches):
                function(requests, batch, 0.03 * number)

        return call

    return least_us(prepare, NUM_BATCHES * STREAMS * STEPS)


def through_sent() -> float:
    """Return what it takes to keep batches for those who may have missed them."""
    payloads = [encode(batch) for batch in make_batches()]

    def prepare() -> Callable[[], None]:
        sent = Sent()

        def call() -> None:
            for payload in payloads:
                sent.add(payload)

        return call

    return least_us(prepare, NUM_BATCHES * STREAMS * STEPS)


def through_canary() -> float:
    """Return what it takes to look at each step."""
    spec = EngineSpec(name="m", max_running=64, block_size=16, num_blocks=64, max_model_len=4096, vocab_size=1000)
    step = Step(list(range(STREAMS)), list(range(STREAMS)), [], [], StepStats(STEP_S, 0, 0, STREAMS, 0))

    def prepare() -> Callable[[], None]:
        canary = Canary(spec, idle_s=10.0, stall_s=60.0, now=0.0)

        def call() -> None:
            for _ in range(200):
                canary.take(step, 1.0)

        return call

    return least_us(prepare, 200 * STREAMS)


def through_ticks() -> float:
    """Return what the owner's search for silence, deadlines and queues takes."""
    requests, _ = make_requests()
    fleet, admission = Fleet(3.0), Admission(10.0)
    fleet.hear("w", 0.0)

    def tick() -> None:
        fleet.find_stalled(0.1)
        fleet.bury_silent(0.1)
        requests.overdue(0.1, 3.0)
        requests.expired(0.1)
        admission.update(requests.unaccepted(), 0.1)
        requests.quiet(0.0)

    return least_us(lambda: tick, 1.0) * TICKS_PER_S / TOKENS_PER_S


def through_heartbeat() -> float:
    """Return what a heartbeat takes, written and read."""
    load = WorkerLoad(
        worker="w",
        model="m",
        running=STREAMS,
        waiting=0,
        free_blocks=1,
        num_blocks=64,
        prefill_tokens=0,
        step_s=STEP_S,
        at=1.0,
    )
    loads = codec(WorkerLoad)
    return least_us(lambda: lambda: (loads.decode(encode(load)), None)[1], 1.0) * BEATS_PER_S / TOKENS_PER_S


def main() -> None:
    fenced, bare = through_owner(Requests.take), through_owner(take)
    pieces = {
        "owner state: attempt, worker, offset of each token": fenced - bare,
        "batches kept to be sent again": through_sent(),
        "canary looks at each step": through_canary(),
        "ticks: silence, deadlines, queues": through_ticks(),
        "heartbeats": through_heartbeat(),
    }
    for name, cost_us in pieces.items():
        print(f"{name:<52}{cost_us:>8.4f} us a token")
    print(f"{'together':<52}{sum(pieces.values()):>8.4f} us a token")
    print(f"(the owner state takes {fenced:.3f} us a token with its checks, {bare:.3f} without)")


if __name__ == "__main__":
    main()
