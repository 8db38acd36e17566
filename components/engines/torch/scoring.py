"""Pure. What is told of a prompt itself: log-probabilities of its tokens, or the vector of it."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.engines import MAX_PROMPT_ROWS, PromptRows, Vector
from components.engines.batching.scheduler import Chunk, Plan
from components.engines.torch.network import Network


def score_prompts(plan: Plan, states: Tensor, network: Network) -> list[PromptRows]:
    """Return the log-probabilities of prompt tokens that this step computes the states before.

    `states` are those of all rows of the step, `(t, hidden)`. Logits are made for a few rows at a time: those of a
    whole prompt would take more memory than the model.
    """
    told: list[PromptRows] = []
    first = len(plan.decode)
    for chunk in plan.prefill:
        if chunk.sequence.needs_whole_prompt:
            told += _score(chunk, states[first : first + chunk.count], network)
        first += chunk.count
    return told


def _score(chunk: Chunk, states: Tensor, network: Network) -> list[PromptRows]:
    sequence = chunk.sequence
    count = sequence.request.prompt_logprobs or 0
    last = min(chunk.start + chunk.count, sequence.num_prompt - 1)
    told = []
    for start in range(chunk.start, last, MAX_PROMPT_ROWS):
        end = min(start + MAX_PROMPT_ROWS, last)
        logprobs = network.logits(states[start - chunk.start : end - chunk.start]).float().log_softmax(-1)
        next_ids = torch.tensor(sequence.tokens[start + 1 : end + 1], device=logprobs.device)
        chosen = logprobs.gather(1, next_ids[:, None])[:, 0].tolist()
        top, ids = logprobs.topk(min(count, logprobs.shape[1]))
        told.append(PromptRows(sequence.key, start + 1, chosen, ids.tolist(), top.tolist()))
    return told


def embed_prompts(plan: Plan, states: Tensor, network: Network) -> list[Vector]:
    """Return the vectors of prompts that this step completes: the state of the last token, of length 1."""
    rows = {
        row: sequence.key
        for row, sequence in zip(_sampled_rows(plan), plan.sampling, strict=True)
        if sequence.is_embedding
    }
    if not rows:
        return []
    vectors = normalize(network.embed(states[list(rows)]).float(), dim=-1).cpu().numpy().astype("<f4")
    return [Vector(key, vector.tobytes()) for key, vector in zip(rows.values(), vectors, strict=True)]


def _sampled_rows(plan: Plan) -> list[int]:
    rows = list(range(len(plan.decode)))
    end = len(rows)
    for chunk in plan.prefill:
        end += chunk.count
        if chunk.is_last:
            rows.append(end - 1)
    return rows
