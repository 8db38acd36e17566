"""Text to token ids and back, as the model's own tokenizer has it."""

import pytest
from tokenizers import Tokenizer

from bus.errors import InvalidRequest, Malformed
from frontend.model import ServedModel
from frontend.openai.tokens import detokenize, detokenize_body, tokenize, tokenize_body

TEXT = "It's what a bus does. 你好 😀"


def test_a_prompt_goes_there_and_back(model: ServedModel, oracle: Tokenizer) -> None:
    body, _ = tokenize_body.decode(('{"prompt":"' + TEXT + '","return_token_strs":true}').encode())
    made = tokenize(body, model)
    assert made.tokens == oracle.encode(TEXT).ids
    assert (made.count, made.max_model_len) == (len(made.tokens), 256)
    assert made.token_strs is not None
    assert len(made.token_strs) == made.count
    back, _ = detokenize_body.decode(b'{"tokens":' + str(made.tokens).encode() + b"}")
    assert detokenize(back, model).prompt == TEXT


def test_a_conversation_is_open_for_the_answer_unless_it_is_not_to_be(model: ServedModel, oracle: Tokenizer) -> None:
    turn = b'"messages":[{"role":"user","content":"back"}]'
    whole = tokenize(tokenize_body.decode(b"{%b}" % turn)[0], model).tokens
    closed = tokenize(tokenize_body.decode(b'{%b,"add_generation_prompt":false}' % turn)[0], model).tokens
    assert whole[: len(closed)] == closed
    assert oracle.decode(whole[len(closed) :], skip_special_tokens=False) == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "data", [b"{}", b'{"prompt":"a","messages":[{"role":"user"}]}', b'{"prompt":"\\ud800"}', b'{"prompt":5}', b"[", b""]
)
def test_hostile_bodies_are_refused(data: bytes, model: ServedModel) -> None:
    with pytest.raises((InvalidRequest, Malformed)):
        tokenize(tokenize_body.decode(data)[0], model)


@pytest.mark.parametrize("tokens", [b"[512]", b"[-1]", b"[4294967296]", b'["a"]', b"5", b"[1.5]"])
def test_hostile_ids_are_refused(tokens: bytes, model: ServedModel) -> None:
    with pytest.raises(InvalidRequest):
        detokenize(detokenize_body.decode(b'{"tokens":%b}' % tokens)[0], model)
