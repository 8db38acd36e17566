"""Pure. Min-p, then top-k, then top-p (vLLM's order), as one number per row: the least weight that a token may have.

Equally likely tokens stay or go together, as in vLLM and transformers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bus.messages.inference import Sampling

WINDOW = 256
"""Likeliest tokens among which a cut nearly always lies: sorting a whole vocabulary takes many times longer."""


def least_weights(weights: Tensor, limits: Sequence[Sampling], window: int = WINDOW) -> Tensor:
    """Return the cut of each row, `(rows, 1)`, looking at the `window` likeliest tokens first.

    `weights` `(rows, vocab)` are probabilities scaled so that the likeliest token of a row weighs 1.
    """
    vocab = weights.shape[1]
    window = min(window, vocab)
    min_p = torch.tensor([each.min_p for each in limits], device=weights.device)[:, None]
    top_p = torch.tensor([each.top_p for each in limits], device=weights.device)[:, None]
    top_k = torch.tensor([min(each.top_k or vocab, vocab) for each in limits], device=weights.device)[:, None]

    likeliest = descending(weights, window)
    kth = likeliest.gather(1, top_k.clamp(max=window) - 1)
    least = torch.maximum(min_p, kth.masked_fill(top_k > window, 0.0))
    likeliest = likeliest.masked_fill(likeliest < least, 0.0)
    cumulative = likeliest.cumsum(-1)
    goes_on = (top_k > window) & (likeliest[:, -1:] > 0.0)
    mass = torch.where(goes_on, weights.masked_fill(weights < least, 0.0).sum(-1, True), cumulative[:, -1:])
    num_kept = (cumulative - likeliest < mass * top_p).sum(-1, keepdim=True).clamp(min=1)
    goes_on &= num_kept == window
    least = torch.maximum(least, likeliest.gather(1, num_kept - 1).masked_fill(goes_on, 0.0))

    rows = (goes_on & ((top_p < 1.0) | (top_k < vocab)))[:, 0].nonzero()[:, 0]
    if len(rows):
        least[rows] = least_weights(weights[rows], [limits[row] for row in rows.tolist()], vocab)
    return least


def descending(weights: Tensor, count: int) -> Tensor:
    """Return the `count` largest values of each row, largest first; on a CPU by numpy, whose sorts are vectorised."""
    if weights.device.type != "cpu":
        return weights.topk(count).values
    first = weights.shape[1] - count
    largest = np.partition(weights.numpy(), first, axis=-1)[:, first:] if first else weights.numpy()
    return torch.from_numpy(np.sort(largest, axis=-1)[:, ::-1].copy())
