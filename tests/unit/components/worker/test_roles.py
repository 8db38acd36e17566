"""Which lanes a worker shares, and when it hands over: for each pool, nobody's work is left lying."""

from itertools import combinations, product
from typing import Any

import pytest

from components.worker.roles import hands_over, shared_lanes

P, D, B = frozenset({"prefill"}), frozenset({"decode"}), frozenset({"both"})


@pytest.mark.parametrize(
    ("roles", "others", "lanes"),
    [
        (B, [], {"both"}),
        (B, [B, B], {"both"}),
        (B, [P], {"both", "decode"}),
        (P, [D], {"prefill", "both"}),
        (P, [], {"prefill", "both", "decode"}),
        (P, [P], {"prefill", "both", "decode"}),
        (P, [B], {"prefill", "both"}),
        (D, [P], {"decode"}),
        (D, [], {"decode", "both"}),
        (D, [D], {"decode", "both"}),
        (P | D, [], {"prefill", "decode", "both"}),
        (frozenset({"encode"}), [P, D], {"encode"}),
    ],
)
def test_lanes_follow_from_the_roles_of_all(roles: Any, others: Any, lanes: set[str]) -> None:
    assert shared_lanes(roles, others) == lanes


@pytest.mark.parametrize("size", [1, 2, 3])
def test_whatever_the_pool_requests_are_pulled_and_so_is_what_was_handed_over(size: int) -> None:
    for pool in product((P, D, B, P | D), repeat=size):
        seats = [(pool[number], [*pool[:number], *pool[number + 1 :]]) for number in range(size)]
        pulled = frozenset().union(*(shared_lanes(roles, others) for roles, others in seats))
        assert "both" in pulled
        if any(hands_over("both", roles, others) for roles, others in seats):
            assert "decode" in pulled
            takers = [others for roles, others in seats if hands_over("both", roles, others)]
            assert all(any({"decode", "both"} & other for other in others) for others in takers)


@pytest.mark.parametrize("pool", list(combinations((P, P, D, B, P | D), 2)))
def test_what_a_router_sends_to_prefill_is_handed_over_where_somebody_decodes(pool: Any) -> None:
    roles, other = pool
    assert hands_over("prefill", roles, [other]) == ("both" not in roles and bool({"decode", "both"} & other))
    assert not hands_over("decode", roles, [other])
