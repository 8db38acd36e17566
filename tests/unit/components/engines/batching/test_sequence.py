import pytest

from bus.messages.inference import FinishReason, Sampling, Stopping
from components.engines import EngineRequest
from components.engines.batching.features import ADJUSTED, LOGPROBS, RANDOM, TRUNCATED, features_of
from components.engines.batching.history import TokenHistory
from components.engines.batching.sequence import Sequence
from kv_events.hashing import block_hashes, salt_hash


def make(
    stopping: Stopping, *, prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), limit: int = 100
) -> Sequence:
    request = EngineRequest(1, list(prompt), list(output), Sampling(), stopping, frozenset([7]))
    return Sequence(request, model="m", max_model_len=limit)


@pytest.mark.parametrize(
    ("stopping", "token", "reason"),
    [
        (Stopping(max_tokens=5), 7, "stop"),
        (Stopping(max_tokens=5), 8, None),
        (Stopping(max_tokens=5, ignore_eos=True), 7, None),
        (Stopping(max_tokens=5, stop_token_ids=[8]), 8, "stop"),
        (Stopping(max_tokens=5, stop_token_ids=[8], ignore_eos=True), 8, "stop"),
        (Stopping(max_tokens=1), 8, "length"),
        (Stopping(max_tokens=1), 7, "stop"),
    ],
)
def test_a_token_ends_the_sequence_or_not(stopping: Stopping, token: int, reason: FinishReason | None) -> None:
    assert make(stopping).append(token) == reason


def test_the_context_ends_a_sequence() -> None:
    sequence = make(Stopping(max_tokens=50), limit=4)
    assert sequence.append(8) is None
    assert sequence.append(8) == "length"


def test_stop_tokens_are_banned_until_there_are_enough() -> None:
    sequence = make(Stopping(max_tokens=9, min_tokens=2, stop_token_ids=[8]))
    assert sequence.banned_ids == {7, 8}
    assert sequence.features & ADJUSTED
    sequence.append(5)
    assert sequence.banned_ids == {7, 8}
    sequence.append(5)
    assert not sequence.banned_ids
    assert not sequence.features & ADJUSTED


def test_tokens_of_earlier_attempts_count_as_output() -> None:
    sequence = make(Stopping(max_tokens=3, min_tokens=2), output=(5, 5))
    assert sequence.num_output == 2
    assert not sequence.banned_ids
    assert sequence.append(5) == "length"
    assert make(Stopping(max_tokens=3), output=(5, 7)).finish_reason() == "stop"
    assert make(Stopping(max_tokens=3), prompt=(7,)).finish_reason() is None


def test_hashes_are_those_of_everybody_else() -> None:
    sequence = make(Stopping(max_tokens=50), prompt=tuple(range(10)))
    root = salt_hash("m")
    assert sequence.hashes(1, 4) == block_hashes(list(range(4)), 4, root)
    for _ in range(2):
        sequence.append(3)
    assert sequence.hashes(3, 4) == block_hashes([*range(10), 3, 3], 4, root)


@pytest.mark.parametrize(
    ("sampling", "features"),
    [
        (Sampling(), RANDOM),
        (Sampling(temperature=0.0), 0),
        (Sampling(temperature=0.0, top_p=0.5), 0),
        (Sampling(top_p=0.5), RANDOM | TRUNCATED),
        (Sampling(top_k=3), RANDOM | TRUNCATED),
        (Sampling(min_p=0.1), RANDOM | TRUNCATED),
        (Sampling(temperature=0.0, presence_penalty=1.0), ADJUSTED),
        (Sampling(temperature=0.0, frequency_penalty=1.0), ADJUSTED),
        (Sampling(temperature=0.0, repetition_penalty=1.1), ADJUSTED),
        (Sampling(temperature=0.0, logit_bias={3: 1.0}), ADJUSTED),
        (Sampling(temperature=0.0, top_logprobs=0), LOGPROBS),
    ],
)
def test_a_request_asks_for_no_more_than_it_names(sampling: Sampling, features: int) -> None:
    assert features_of(sampling, is_restricted=False) == features


def test_history_counts_produced_tokens_and_knows_the_prompt() -> None:
    history = TokenHistory([3, 3, 4], [4, 5])
    for token in (5, 6, 3):
        history.add(token)
    assert dict(zip(history.ids, history.counts, strict=True)) == {3: 1, 4: 1, 5: 2, 6: 1}
