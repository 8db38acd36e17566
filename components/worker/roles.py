"""Pure. Which lanes a worker of some roles shares with others, and whether it leaves the decoding to them."""

from collections.abc import Collection, Iterable, Set

from bus.messages.inference import Role

PREFILLS: tuple[Role, ...] = ("prefill", "both")
"""Roles that take requests as they come."""
DECODES: tuple[Role, ...] = ("decode", "both")
"""Roles that take what was prefilled."""


def shared_lanes(roles: Collection[Role], others: Iterable[Set[Role]]) -> frozenset[Role]:
    """Return the roles whose shared lanes a worker pulls from, given the roles of the pool's other workers.

    Whole requests (`both`) are for workers that prefill; with none of those left, those that decode take them. What was
    prefilled (`decode`) is for workers that decode and, as soon as somebody prefills only, for those that do both; with
    none of either left, those that prefill take it back.
    """
    others = list(others)
    lanes = set(roles)
    if "prefill" in roles or ("decode" in roles and not _any_has(others, PREFILLS)):
        lanes.add("both")
    if "both" in roles and any("prefill" in each for each in others):
        lanes.add("decode")
    if "prefill" in roles and not _any_has(others, DECODES):
        lanes.add("decode")
    return frozenset(lanes)


def hands_over(lane: Role, roles: Collection[Role], others: Iterable[Set[Role]]) -> bool:
    """Say whether a job from `lane` is prefilled here and decoded elsewhere.

    A router that sends a job to a prefill lane has decided so; else who has no other role than `prefill` does. Without
    anybody to decode, it is all done here.
    """
    is_meant = lane == "prefill" or (lane == "both" and "prefill" in roles and not _any_has([set(roles)], DECODES))
    return is_meant and "both" not in roles and _any_has(others, DECODES)


def _any_has(workers: Iterable[Set[Role]], roles: Iterable[Role]) -> bool:
    wanted = set(roles)
    return any(not wanted.isdisjoint(each) for each in workers)
