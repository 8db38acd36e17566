"""Pure. The next token of each sequence from its logits: rows that ask for the same are handled together."""

from collections.abc import Sequence as Items
from typing import NamedTuple

import torch
from torch import Tensor

from components.engines import Logprobs
from components.engines.batching.features import ADJUSTED, LOGPROBS, RANDOM, TRUNCATED
from components.engines.batching.sequence import Sequence
from components.engines.torch.adjust import adjust
from components.engines.torch.randomness import uniforms
from components.engines.torch.truncation import least_weights

MIN_TEMPERATURE = 1e-6


class Sampled(NamedTuple):
    """What was chosen for each row of logits."""

    tokens: list[int]
    broken: frozenset[int]
    """Rows whose logits are not finite: their tokens mean nothing."""
    logprobs: list[Logprobs]


class Choice(NamedTuple):
    """Tokens `(rows,)`, and a value for each that is finite just when the logits of its row are sound."""

    tokens: Tensor
    evidence: Tensor


def sample(logits: Tensor, sequences: Items[Sequence]) -> Sampled:
    """Choose a token for each row of `logits` `(rows, vocab)`, row i being the next token of `sequences[i]`."""
    groups: dict[int, list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault(sequence.features, []).append(row)
    if len(groups) == 1:
        tokens, evidence = _choose(logits, sequences, next(iter(groups)))
    else:
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        evidence = torch.empty(len(logits), device=logits.device)
        for features, rows in groups.items():
            tokens[rows], evidence[rows] = _choose(logits[rows], [sequences[row] for row in rows], features)
    is_sound = evidence.isfinite().tolist()
    broken = frozenset() if all(is_sound) else frozenset(row for row, sound in enumerate(is_sound) if not sound)
    wanting = [row for features, rows in groups.items() if features & LOGPROBS for row in rows]
    logprobs = _logprobs(logits[wanting], tokens[wanting], sequences, wanting) if wanting else []
    return Sampled(tokens.tolist(), broken, logprobs)


def _choose(logits: Tensor, sequences: Items[Sequence], features: int) -> Choice:
    """Choose for rows that all have the same features."""
    logits = adjust(logits, sequences) if features & ADJUSTED else logits.float()
    if features & TRUNCATED:
        return _choose_truncated(logits, sequences)
    return _choose_random(logits, sequences) if features & RANDOM else _choose_likeliest(logits)


def _choose_likeliest(logits: Tensor) -> Choice:
    is_cpu = logits.device.type == "cpu"  # there numpy's search is ten times faster than torch's
    tokens = torch.from_numpy(logits.numpy().argmax(-1)) if is_cpu else logits.argmax(-1)
    return Choice(tokens, logits.gather(1, tokens[:, None])[:, 0])


def _choose_random(logits: Tensor, sequences: Items[Sequence]) -> Choice:
    cumulative = _weights(logits, sequences).cumsum(-1)
    return Choice(_invert(cumulative, sequences), cumulative[:, -1])


def _choose_truncated(logits: Tensor, sequences: Items[Sequence]) -> Choice:
    weights = _weights(logits, sequences)
    total = weights.sum(-1)
    weights.masked_fill_(weights < least_weights(weights, [each.request.sampling for each in sequences]), 0.0)
    cumulative = weights.cumsum(-1)
    return Choice(_invert(cumulative, sequences), total)


def _weights(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """Return probabilities at the rows' temperatures, scaled so that the likeliest token weighs 1."""
    temperatures = [max(sequence.request.sampling.temperature, MIN_TEMPERATURE) for sequence in sequences]
    column = torch.tensor(temperatures, device=logits.device)[:, None]
    return (logits - logits.amax(-1, keepdim=True)).div_(column).exp_()


def _invert(cumulative: Tensor, sequences: Items[Sequence]) -> Tensor:
    """Return the first index at which each row passes its share of the last value, drawn by (seed, offset)."""
    drawn = uniforms([each.request.sampling.seed for each in sequences], [each.num_output for each in sequences])
    share = torch.from_numpy(drawn).to(cumulative.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, share, right=True)[:, 0].clamp_(max=cumulative.shape[1] - 1)


def _logprobs(logits: Tensor, tokens: Tensor, sequences: Items[Sequence], rows: Items[int]) -> list[Logprobs]:
    """Return log-probabilities of the model's own distribution, before any temperature or adjustment."""
    counts = [sequences[row].request.sampling.top_logprobs or 0 for row in rows]
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    top, ids = logprobs.topk(min(max(counts), logits.shape[1]))
    top_lists, id_lists = top.tolist(), ids.tolist()
    return [
        Logprobs(row, chosen[index], id_lists[index][:count], top_lists[index][:count])
        for index, (row, count) in enumerate(zip(rows, counts, strict=True))
    ]
