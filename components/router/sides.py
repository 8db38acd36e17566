"""Pure. Which of a pool's workers may have a request, by their roles, and on which side its prompt is computed."""

import math
from collections.abc import Container, Sequence
from typing import Protocol

from bus.messages.inference import Role
from components.router.disaggregate import Disaggregation, Verdict
from components.router.request import Request


class Holdings(Protocol):
    """What is known of a prompt at each worker."""

    def cached(self, request: Request, number: int) -> int:
        """Return the tokens that a worker holds in device memory."""

    def fetch_token_s(self, number: int) -> float:
        """Return the seconds that the KV of a token took to come to a worker lately; 0: none came."""


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

    def narrow(self, request: Request, costs: list[float], holdings: Holdings) -> tuple[list[float], str]:
        """Make the other side infinitely dear; return the costs and, where there was a choice, the reason for it."""
        if not self._prefill or not self._decode:
            return costs, ""
        if request.num_prefilled_blocks is not None:
            return _without(costs, self._prefill), ""
        verdict = self._weigh(request, costs, holdings)
        return _without(costs, self._decode.keys() if verdict.is_remote else self._prefill), verdict.reason

    def note(self, role: Role) -> None:
        """A request that was to be computed goes to that lane."""
        if self._prefill and self._decode:
            self._disaggregation.note(Verdict(role == "prefill", ""))

    def _weigh(self, request: Request, costs: list[float], holdings: Holdings) -> Verdict:
        local = min(self._decode, key=costs.__getitem__)
        prefill_s = min(costs[number] for number in self._prefill)
        fetch_tokens = max(0, request.num_tokens - holdings.cached(request, local))
        return self._disaggregation.weigh(costs[local], prefill_s, fetch_tokens, holdings.fetch_token_s(local))


def _without(costs: list[float], numbers: Container[int]) -> list[float]:
    return [math.inf if number in numbers else cost for number, cost in enumerate(costs)]
