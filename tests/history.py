"""Pure. What clients saw of their requests, and whether it is what was promised.

Every request that was sent ends exactly once; what it showed is what the oracle says, no token lost and none doubled;
nothing is said after the end. The simulation and the tests with real processes write the same histories.
"""

from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Literal

import msgspec

from components.engines.mock.oracle import mock_token, prompt_seed

Ending = Literal["finished", "failed", "left"]


class Expected(msgspec.Struct, frozen=True):
    """What a request is to bring."""

    tokens: tuple[int, ...]
    text: str
    reason: str = "length"


class Asked(msgspec.Struct, frozen=True):
    """A client sent a request. Times are seconds of one clock."""

    request: str
    at: float
    expected: Expected


class Shown(msgspec.Struct, frozen=True):
    """A piece of the answer arrived; `tokens` are empty where the API does not tell them."""

    request: str
    at: float
    text: str
    tokens: tuple[int, ...] = ()


class Ended(msgspec.Struct, frozen=True):
    """The answer is over: finished (with its finish reason), failed (with the code of its error), or the client left,
    because it wanted to or because the frontend that it was connected to died."""

    request: str
    at: float
    how: Ending
    why: str = ""
    num_tokens: int | None = None
    """What the usage says, if it was told."""


Event = Asked | Shown | Ended


class Idle(msgspec.Struct, frozen=True):
    """What a worker holds when nobody wants anything from it."""

    worker: str
    live: int
    """Attempts that take a slot."""
    running: int
    waiting: int
    free_blocks: int
    num_blocks: int
    leases: int = 0
    """Offers of blocks that are out, and offers of others that are in use."""
    moving: int = 0
    """Sequences whose blocks are kept for another worker, or on their way here."""
    pinned: int = 0
    """Blocks of the tiers that may not leave, or are not there yet."""


def expect(prompt: Sequence[int], num_tokens: int, vocab_size: int, decode: Callable[[Sequence[int]], str]) -> Expected:
    """Return what the mock engine's oracle says for a prompt that asks for `num_tokens`, end tokens being ignored."""
    seed = prompt_seed(prompt)
    tokens = tuple(mock_token(seed, offset, vocab_size) for offset in range(num_tokens))
    return Expected(tokens, decode(tokens))


def check_history(
    events: Iterable[Event], *, may_refuse: Iterable[str] = (), may_fail: Iterable[str] = ()
) -> list[str]:
    """Return what is wrong, a line each, in the order of requests.

    No violation are errors with a code in `may_refuse` if nothing was shown before, and with one in `may_fail` always.

    Events are in the order in which they were seen. A request that left or failed must have shown a part of what was
    expected, from its beginning.
    """
    refusals, failures = frozenset(may_refuse), frozenset(may_fail)
    wrong: list[str] = []
    seen: dict[str, list[Shown | Ended]] = {}
    asked: dict[str, Asked] = {}
    for event in events:
        if isinstance(event, Asked):
            if event.request in asked:
                wrong.append(f"{event.request}: asked twice")
            asked[event.request] = event
            seen[event.request] = []
        elif event.request not in asked:
            wrong.append(f"{event.request}: {type(event).__name__.lower()} without having been asked")
        else:
            seen[event.request].append(event)
    for request, question in asked.items():
        is_silent = not any(isinstance(event, Shown) for event in seen[request])
        allowed = failures | refusals if is_silent else failures
        wrong += [f"{request}: {line}" for line in _check_one(question, seen[request], allowed)]
    return wrong


def check_idle(states: Iterable[Idle]) -> list[str]:
    """Return what idle workers still hold, a line each."""
    wrong = []
    for state in states:
        held = state.num_blocks - state.free_blocks
        elsewhere = (state.leases, state.moving, state.pinned)
        if state.live or state.running or state.waiting or held or any(elsewhere):
            wrong.append(
                f"{state.worker}: idle, but holds {state.live} slots, {state.running} running and {state.waiting} "
                f"waiting sequences, {held} blocks, {state.leases} leases, {state.moving} moving sequences, "
                f"{state.pinned} pins in tiers"
            )
    return wrong


def _check_one(asked: Asked, events: Sequence[Shown | Ended], allowed: frozenset[str]) -> list[str]:
    ends = [event for event in events if isinstance(event, Ended)]
    if not ends:
        return [f"never ended, asked at {asked.at:.3f} s"]
    wrong = []
    if len(ends) > 1:
        wrong.append(f"ended {len(ends)} times: {', '.join(f'{end.how} {end.why}'.strip() for end in ends)}")
    end = ends[0]
    last = events.index(end)
    if any(isinstance(event, Shown) for event in events[last:]):
        wrong.append("went on after its end")
    shown = [event for event in events if isinstance(event, Shown)]
    is_whole = end.how == "finished"
    text = "".join(event.text for event in shown)
    wrong += _compare("text", text, asked.expected.text, is_whole=is_whole)
    tokens = [token for event in shown for token in event.tokens]
    if tokens:
        wrong += _compare("tokens", tokens, asked.expected.tokens, is_whole=is_whole)
    if is_whole and end.why != asked.expected.reason:
        wrong.append(f"finished because of {end.why!r}, not {asked.expected.reason!r}")
    if is_whole and end.num_tokens not in (None, len(asked.expected.tokens)):
        wrong.append(f"used {end.num_tokens} tokens, not {len(asked.expected.tokens)}")
    if end.how == "failed" and end.why not in allowed:
        wrong.append(f"failed at {end.at:.3f} s: {end.why}")
    return wrong


def _compare(kind: str, found: str | Sequence[int], expected: str | Sequence[int], *, is_whole: bool) -> list[str]:
    """Say how two sequences differ, first of all where; a part from the beginning is enough unless `is_whole`."""
    wanted = expected if is_whole else expected[: len(found)]
    if len(found) == len(wanted) and all(one == other for one, other in zip(found, wanted, strict=True)):
        return []
    place = next(
        (at for at, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other),
        min(len(found), len(wanted)),
    )
    counts = {"delete": 0, "insert": 0, "replace": 0}
    for operation, one_from, one_to, other_from, other_to in SequenceMatcher(
        None, found, wanted, autojunk=False
    ).get_opcodes():
        if operation != "equal":
            counts[operation] += max(one_to - one_from, other_to - other_from)
    return [
        f"{kind} of length {len(found)}, expected {len(wanted)}: differs at {place}; "
        f"{counts['insert']} lost, {counts['delete']} too many, {counts['replace']} wrong; "
        f"{_around(found, place)!r} for {_around(wanted, place)!r}"
    ]


def _around(sequence: str | Sequence[int], place: int) -> str | list[int]:
    part = sequence[max(0, place - 8) : place + 16]
    return part if isinstance(part, str) else list(part)
