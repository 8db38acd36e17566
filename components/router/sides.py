"""Pure. Which of a pool's workers may have a request, by their roles, and on which side its prompt is computed."""

import math
from collections.abc import Container, Sequence
from typing import Protocol

from bus.messages.inference import Role
from components.router.disaggregate import Disaggregation, Verdict
from components.router.request import Request


class Holdings(Protocol):
    """What is known of a prompt at each worker."""

    def join_costs(self, request: Request, now: float) -> list[float]:
        """Return what is left for each worker once the prompt is computed elsewhere, in seconds."""

    def missing_tokens(self, request: Request, number: int) -> int:
        """Return the tokens in full blocks that a worker would have to fetch."""


class Sides:
    """Workers by number: those that only prefill, and those that decode, prefilled or not."""

    def __init__(self, disaggregation: Disaggregation) -> None:
        self._disaggregation = disaggregation
        self._prefill: set[int] = set()
        self._decode: dict[int, Role] = {}
        """With the lane by which they get what they decode."""

    def set_roles(self, number: int, roles: frozenset[Role]) -> None:
        """A worker came, or has other roles now."""
        self.forget(number)
        if "both" in roles or "decode" in roles:
            self._decode[number] = "both" if "both" in roles else "decode"
        else:
            self._prefill.add(number)

    @property
    def both(self) -> tuple[Container[int], Container[int]]:
        """Those that prefill for others, and those that decode."""
        return self._prefill, self._decode

    def forget(self, number: int) -> None:
        self._prefill.discard(number)
        self._decode.pop(number, None)

    def role(self, number: int) -> Role:
        """Return the lane of a worker that a request goes to."""
        return self._decode.get(number, "prefill")

    def present(self, request: Request, numbers: Sequence[int]) -> Sequence[int]:
        """Return those of `numbers` that may have the request, where nobody asks for costs."""
        if not self._prefill or not self._decode:
            return numbers
        if request.num_prefilled_blocks is None:
            return [number for number in numbers if self._decode.get(number) != "decode"]
        return [number for number in numbers if number in self._decode]

    def narrow(self, request: Request, costs: list[float], holdings: Holdings, now: float) -> tuple[list[float], str]:
        """Make the other side infinitely dear; return the costs and, where there was a choice, the reason for it."""
        if not self._prefill or not self._decode:
            return costs, ""
        if request.num_prefilled_blocks is not None:
            return _without(costs, self._prefill), ""
        verdict = self._weigh(request, costs, holdings, now)
        return _without(costs, self._decode.keys() if verdict.is_remote else self._prefill), verdict.reason

    def note(self, role: Role) -> None:
        """A request that was to be computed goes to that lane."""
        if self._prefill and self._decode:
            self._disaggregation.note(Verdict(role == "prefill", ""))

    def _weigh(self, request: Request, costs: list[float], holdings: Holdings, now: float) -> Verdict:
        local_s = min(costs[number] for number in self._decode)
        prefill_s = min(costs[number] for number in self._prefill)
        join_costs = holdings.join_costs(request, now)
        reader = min(self._decode, key=join_costs.__getitem__)
        fetch_tokens = holdings.missing_tokens(request, reader)
        return self._disaggregation.weigh(local_s, prefill_s, join_costs[reader], fetch_tokens)


def _without(costs: list[float], numbers: Container[int]) -> list[float]:
    return [math.inf if number in numbers else cost for number, cost in enumerate(costs)]
