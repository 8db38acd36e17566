"""Pure. What is done to logits before a token is chosen: bias, then penalties, then the ban of stop tokens."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from components.engines.torch.sequence import Sequence


def adjust(logits: Tensor, sequences: Iterable[Sequence]) -> Tensor:
    """Return adjusted logits `(rows, vocab)` in float32; touches only tokens that are named or were seen."""
    logits = logits.to(torch.float32, copy=True)
    for row, sequence in zip(logits, sequences, strict=True):
        if bias := sequence.request.sampling.logit_bias:
            row[list(bias)] += torch.tensor(list(bias.values()), device=row.device)
        if sequence.history is not None:
            seen = torch.from_numpy(np.array(sequence.history.ids)).to(row.device)
            counts = torch.from_numpy(np.array(sequence.history.counts)).to(row.device)
            row[seen] = _penalise(row[seen], counts, sequence)
        if banned := [token for token in sequence.banned_ids if 0 <= token < len(row)]:
            row[banned] = float("-inf")
    return logits


def _penalise(logits: Tensor, counts: Tensor, sequence: Sequence) -> Tensor:
    """Apply the penalties, as vLLM and OpenAI define them, to tokens seen, `counts` of which were produced."""
    sampling = sequence.request.sampling
    factor = sampling.repetition_penalty
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    return logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
