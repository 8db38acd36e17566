"""The oracle: tokens follow from prompt and position alone, and are plain text in any tokenizer."""

import pytest

from components.engines.mock.oracle import mock_token, plain_ids, prompt_seed


def test_tokens_depend_on_prompt_and_position_only() -> None:
    seed = prompt_seed([1, 2, 3])
    assert seed == prompt_seed((1, 2, 3)) != prompt_seed([1, 2, 4])
    text = [mock_token(seed, offset, 32_000) for offset in range(100)]
    assert text == [mock_token(seed, offset, 32_000) for offset in range(100)]
    assert len(set(text)) > 90
    assert text != [mock_token(prompt_seed([9]), offset, 32_000) for offset in range(100)]


def test_these_tokens_stay_as_they_are() -> None:
    seed = prompt_seed([1, 2, 3])
    assert [mock_token(seed, offset, 32_000) for offset in (0, 1, 2**31)] == [9_092, 26_769, 14_753]


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 100, 512, 1023, 1024, 2048, 32_000, 50_257, 128_256, 151_936])
def test_ids_are_inside_the_vocabulary_and_off_its_ends(vocab_size: int) -> None:
    ids = plain_ids(vocab_size)
    assert len(ids) >= 1
    assert 0 <= ids.start < ids.stop <= vocab_size
    if vocab_size >= 1024:
        assert ids.start >= 260
        assert vocab_size - ids.stop >= 16
    assert all(mock_token(123, offset, vocab_size) in ids for offset in range(50))


def test_the_special_tokens_of_llama_3_are_left_out() -> None:
    assert plain_ids(128_256).stop <= 128_000
