"""Pure. Whether a prompt is computed by a worker that only prefills, or by the one that will decode it.

Both sides are priced in seconds to the first token, what others lose included. Elsewhere, a prompt waits in another
queue, finds another cache, and its KV blocks have a way to go; at the decoding worker it holds up all that decode
there. Of two that cost nearly the same, the side that was chosen last is chosen again: a pool that swings between them
fills two caches with the same prompts.
"""

from typing import Literal

import msgspec

Mode = Literal["auto", "always", "never"]
HANDOVER_S = 0.004
"""From the last step of the prefill to the first of the decoding, beside the transfer: two messages and a lease."""
MARGIN = 0.2
"""The other side must be so much cheaper to be chosen after the one that was."""


class Verdict(msgspec.Struct, frozen=True):
    """Where a prompt is computed, and why in words."""

    is_remote: bool
    reason: str


class Disaggregation:
    """Decides for one model, request by request."""

    def __init__(self, mode: Mode, *, margin: float = MARGIN) -> None:
        """`always` and `never` decide alike for all, for comparison."""
        self._mode = mode
        self._margin = margin
        self._was_remote = False

    def weigh(self, local_s: float, prefill_s: float, join_s: float, fetch_tokens: int) -> Verdict:
        """Say where a prompt goes, and change nothing.

        `local_s` is what it costs at the cheapest worker that decodes, `prefill_s` at the cheapest that prefills only,
        and `join_s` what is left then for one that decodes: its turn there, the KV of `fetch_tokens` on its way, and
        the tokens behind the last full block, which no transfer brings.
        """
        remote_s = prefill_s + HANDOVER_S + join_s
        sums = (
            f"prefilled elsewhere {remote_s * 1000:.1f} ms, {join_s * 1000:.1f} ms of them to fetch {fetch_tokens} "
            f"tokens and go on; here {local_s * 1000:.1f} ms"
        )
        if self._mode != "auto":
            return Verdict(self._mode == "always", f"router.disaggregate = {self._mode}: {sums}")
        if self._was_remote:
            return Verdict(remote_s <= local_s * (1 + self._margin), sums)
        return Verdict(remote_s * (1 + self._margin) < local_s, sums)

    def note(self, verdict: Verdict) -> None:
        """Remember what was done."""
        self._was_remote = verdict.is_remote
