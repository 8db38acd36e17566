"""Pure. What is done to logits before a token is chosen: bias, penalties, the ban of stop tokens, the grammar."""

from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from bus.messages.inference import Sampling
from components.engines.batching.history import TokenHistory
from components.engines.batching.sequence import Sequence


def adjust(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """Return adjusted logits `(rows, vocab)` in float32; touches only tokens that are named or were seen."""
    logits = logits.to(torch.float32, copy=True)
    flat, vocab = logits.view(-1), logits.shape[1]
    biased = [
        (row * vocab + token, bias)
        for row, sequence in enumerate(sequences)
        for token, bias in sequence.request.sampling.logit_bias.items()
    ]
    if biased:
        places, biases = zip(*biased, strict=True)
        flat[torch.tensor(places, device=flat.device)] += torch.tensor(biases, device=flat.device)
    seen = [
        (row, each.history, each.request.sampling) for row, each in enumerate(sequences) if each.history is not None
    ]
    if seen:
        _penalise(flat, vocab, seen)
    banned = [
        row * vocab + token
        for row, sequence in enumerate(sequences)
        if sequence.grammar is None
        for token in sequence.banned_ids
        if 0 <= token < vocab
    ]
    flat[torch.tensor(banned, dtype=torch.int64, device=flat.device)] = float("-inf")
    for row, sequence in enumerate(sequences):
        if sequence.grammar is not None:
            mask = np.frombuffer(sequence.grammar.allowed(sequence.banned_ids), np.uint8)
            bits = np.unpackbits(mask, bitorder="little")[:vocab]
            allowed = torch.from_numpy(bits.view(np.bool_)).to(logits.device)
            logits[row, : len(bits)].masked_fill_(~allowed, float("-inf"))
            logits[row, len(bits) :] = float("-inf")
    return logits


def _penalise(flat: Tensor, vocab: int, seen: list[tuple[int, TokenHistory, Sampling]]) -> None:
    """Apply the penalties, as vLLM and OpenAI define them, to the tokens that each row has seen."""
    lengths = [len(history.ids) for _, history, _ in seen]
    places = np.concatenate([np.asarray(history.ids) + row * vocab for row, history, _ in seen])
    counts = np.concatenate([np.asarray(history.counts) for _, history, _ in seen])
    each = np.array(
        [(sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) for *_, sampling in seen],
        dtype=np.float32,
    )
    repetition, frequency, presence = np.repeat(each, lengths, axis=0).T
    index = torch.from_numpy(places).to(flat.device)
    factor = torch.from_numpy(repetition.copy()).to(flat.device)
    loss = torch.from_numpy(frequency * counts + presence * (counts > 0)).to(flat.device)
    logits = flat[index]
    flat[index] = torch.where(logits > 0, logits / factor, logits * factor) - loss
