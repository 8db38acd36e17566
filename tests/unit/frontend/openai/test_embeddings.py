"""Shapes of embeddings, and what is made of them."""

import base64
import json
import math
from array import array

import msgspec
import pytest

from bus.errors import InvalidRequest, Malformed, PromptTooLong
from frontend.model import ServedModel
from frontend.openai.embeddings import (
    MAX_INPUTS,
    cosine,
    decode_inputs,
    embed_generations,
    embeddings_body,
    rerank_body,
    score_body,
    score_texts,
    show_embeddings,
    show_ranking,
)


def vector(*values: float) -> bytes:
    return array("f", values).tobytes()


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        (b'"a"', ["a"]),
        (b'["a","b"]', ["a", "b"]),
        (b"[1,2]", [[1, 2]]),
        (b"[[1],[2,3]]", [[1], [2, 3]]),
    ],
)
def test_all_shapes_of_input_are_read(given: bytes, inputs: list[object]) -> None:
    assert decode_inputs(msgspec.Raw(given)) == inputs


@pytest.mark.parametrize(
    "given",
    [
        b"[]",
        b"[[]]",
        b'["a",1]',
        b"5",
        b"{}",
        b"null",
        b"[1.5]",
        b"[-1]",
        json.dumps(["a"] * (MAX_INPUTS + 1)).encode(),
    ],
)
def test_other_shapes_are_refused(given: bytes) -> None:
    with pytest.raises((InvalidRequest, Malformed)):
        decode_inputs(msgspec.Raw(given))


def test_inputs_are_held_against_the_model(model: ServedModel) -> None:
    options = {"tenant": "t", "latency_class": "batch", "param": "input"}
    made = embed_generations(["back", [5, 6]], model, **options)  # type: ignore[arg-type]
    assert [(each.task, each.tenant, each.latency_class) for each in made] == [("embed", "t", "batch")] * 2
    for hostile in (["a " * 300], [[2**31]], [""]):
        with pytest.raises((InvalidRequest, PromptTooLong)):
            embed_generations(hostile, model, **options)  # type: ignore[arg-type]


def test_a_shortened_vector_has_length_one_in_both_formats() -> None:
    numbers, _ = embeddings_body.decode(b'{"input":"a","dimensions":2}')
    packed, _ = embeddings_body.decode(b'{"input":"a","dimensions":2,"encoding_format":"base64"}')
    whole = vector(0.6, 0.0, 0.8)
    shown = json.loads(show_embeddings(numbers, "m", [whole], 7))
    assert shown["data"][0]["embedding"] == [1.0, 0.0]
    assert shown["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    coded = json.loads(show_embeddings(packed, "m", [whole], 7))["data"][0]["embedding"]
    assert base64.b64decode(coded) == vector(1.0, 0.0)
    too_many, _ = embeddings_body.decode(b'{"input":"a","dimensions":4}')
    with pytest.raises(InvalidRequest):
        show_embeddings(too_many, "m", [whole], 7)


def test_documents_are_ranked_by_their_nearness() -> None:
    body, _ = rerank_body.decode(
        b'{"query":"q","documents":["far",{"text":"near"},"mid"],"top_n":2,"return_documents":true}'
    )
    half = math.sqrt(0.5)
    vectors = [vector(1, 0), vector(-1, 0), vector(1, 0), vector(half, half)]
    shown = json.loads(show_ranking(body, "r", "m", vectors, 9))["results"]
    assert [(each["index"], round(each["relevance_score"], 3)) for each in shown] == [(1, 1.0), (2, 0.707)]
    assert shown[0]["document"] == {"text": "near"}
    assert cosine(vector(1, 0), vector(-1, 0)) == -1.0


def test_texts_are_scored_in_pairs() -> None:
    assert score_texts(score_body.decode(b'{"text_1":"a","text_2":["b","c"]}')[0]) == (["a"], ["b", "c"])
    with pytest.raises(InvalidRequest):
        score_texts(score_body.decode(b'{"text_1":["a","b"],"text_2":["c"]}')[0])
