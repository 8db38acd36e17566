"""Pure. A step without the rows of some sequences."""

from collections.abc import Set

import msgspec

from components.engines import Logprobs, Step


def without_rows(step: Step, keys: Set[int]) -> Step:
    """Drop the tokens and log-probabilities of `keys`; what is said of their prompts, and `ended`, stays as it is."""
    place: dict[int, int] = {}
    for row, key in enumerate(step.keys):
        if key not in keys:
            place[row] = len(place)
    return msgspec.structs.replace(
        step,
        keys=[step.keys[row] for row in place],
        tokens=[step.tokens[row] for row in place],
        logprobs=[
            Logprobs(place[each.row], each.logprob, each.top_ids, each.top_logprobs)
            for each in step.logprobs
            if each.row in place
        ],
    )
