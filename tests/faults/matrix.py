"""Pure. The fault matrix: what is broken, and what must hold meanwhile; `MATRIX.md` has it with what was measured."""

from collections.abc import Mapping

COMMON = "In every case: each accepted request ends once, with the oracle's text, and workers hold nothing afterwards"

CASES: Mapping[str, tuple[str, str]] = {
    "1": ("worker kill -9 under 96 streams", "detected in 50 ms, gap at most 250 ms"),
    "2": ("worker kill -9 between accept and first token", "first token at most 500 ms after its prefill"),
    "3": ("worker kill -9 between delivery and accept", "first token at most 2.1 s later"),
    "4": ("worker SIGSTOP 5 s", "gap at most 1.2 s"),
    "4b": ("worker SIGSTOP 3.5 s behind a router", "no request waits for it longer than 1.5 s, new ones included"),
    "5": ("worker SIGTERM", "no error, no gap above 100 ms more than a step"),
    "6": ("2 of 3 workers kill -9 at once", "all finish"),
    "7": ("all workers down 5 s, one comes back", "requests wait; first token at most 1 s after it is in the pool"),
    "8": ("nats-server kill -9, back after 0.3 s", "gap at most 600 ms"),
    "9": ("nats-server down 5 s", "streams go on at most 1 s after it is back; new requests get 503 within 1 s"),
    "10": ("nats-server SIGSTOP 6 s", "streams go on at most 1 s after it"),
    "11": ("nats-server replaced by an empty one", "serves again within 3 s"),
    "12": ("cluster of three: leader of all streams kill -9", "streams go on; new requests within 10 s"),
    "13": (
        "cluster of three: two brokers kill -9, back after 2 s",
        "streams go on; new requests get 503 within 4 s, and are served at most 10 s after they are back",
    ),
    "13b": ("cluster of three: leader of all streams SIGSTOP 6 s", "all finish; new requests at most 10 s after it"),
    "13c": (
        "cluster of three: no routes between the leader of all streams and the others for 8 s",
        "new requests get 503 within 4 s, or are served; another leader within 10 s; all serve at most 10 s after it",
    ),
    "14": ("worker and bus see nothing of each other", "gap at most 3 s; the worker is back at most 10 s after it"),
    "15": ("frontend and bus see nothing of each other 3 s", "streams go on at most 1 s after it"),
    "16": ("20 resets of the workers' connections, 200 ms apart", "file descriptors as before"),
    "17": ("50 ms ± 50 ms on the way to the bus", "at least 80 % of the tokens"),
    "18": ("router kill -9, and a cold one", "gap of dispatch at most 500 ms"),
    "18b": ("one of two routers SIGSTOP 4 s, then the other", "no request waits longer than 2 s for its first token"),
    "20": ("frontend kill -9", "its slots are free within 10 s; the other frontend's streams see nothing"),
    "21": ("half of the clients leave", "their slots are free within 200 ms"),
    "22": ("a request that kills its worker", "two workers lost, then a clear error and a dead letter"),
    "22b": ("a request that makes the engine hang", "the worker ends by itself; the others' streams go on"),
    "23": ("1,000 malformed messages a second", "no connection lost; gaps less than doubled"),
    "24": ("an observer of everything SIGSTOP", "gap at most 250 ms"),
    "25": ("store of the broker full", "streams do not notice; what needs the store says so"),
    "25b": (
        "a flipped bit in what the broker has of batches on disk, and all frontends kill -9",
        "no line is lost, wrong or answered twice",
    ),
    "25c": (
        "each fsync of the broker takes 500 ms",
        "gap at most one of them and 250 ms: a look into the store holds up what its asker sends behind it",
    ),
    "26": ("prefill or decode worker kill -9 at ten points of a handover", "no answer suffers, all blocks come back"),
    "27": ("clock of a worker an hour ahead, then behind", "no request expires"),
    "29": ("a worker of an older version beside new ones", "no error"),
    "30": (
        "twice the load that can be served, of all classes",
        "goodput at least 90 % of capacity, 90 % of interactive served, some of batch; refused within 0.5 s",
    ),
    "31": ("a request cancelled in the queue, in prefill and in decode", "at the worker within 200 ms"),
    "32": ("rolling restart of every process type under load", "no error"),
    "33": ("garbage from the bus to a worker", "gap at most 2.1 s: what it swallowed is delivered again"),
    "34": ("network of a worker's host gone (veth down)", "gap at most 3 s"),
}

ELSEWHERE = """\
A twentieth of all block events lost (19) is in `tests/sim/test_promised.py`, on whole deployments in virtual time; two
planners at once (28) can come with a planner."""


def render(measured: Mapping[str, str]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# The fault matrix",
        "",
        f"{COMMON}. Whole processes, three workers of the mock engine (steps of 20 ms) unless said otherwise, on two",
        "shared cores. Written by `BUSWAY_WRITE_MATRIX=1 python -m pytest tests/faults`; - was not run there.",
        "",
        "| # | fault | must hold | measured |",
        "|---|---|---|---|",
    ]
    lines += [f"| {n} | {fault} | {must} | {measured.get(n, '-')} |" for n, (fault, must) in CASES.items()]
    lines += ["", ELSEWHERE]
    return "\n".join([*lines, ""])


def read_measured(text: str) -> dict[str, str]:
    """Return what a table that was rendered before has in its last column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[3] for row in rows if row[0] in CASES and row[3] != "-"}
