"""Files of tokenizers become tables of bytes; broken files are refused."""

import json

import pytest

from bus.errors import Malformed
from frontend.tokenizer import load_tokenizer
from frontend.vocabulary import escape, read_vocabulary


def sentencepiece(**changes: object) -> bytes:
    """A tokenizer.json with byte fallback, as Llama 2 has it."""
    file = {
        "model": {"type": "BPE", "vocab": {"<unk>": 0, "</s>": 1, "<0xC3>": 2, "<0xA9>": 3, "▁bus": 4, "▁": 5, "s": 6}},
        "added_tokens": [
            {"id": 1, "content": "</s>", "special": True},
            {"id": 7, "content": "<tool>", "special": False},
        ],
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }
    return json.dumps(file | changes).encode()


def test_sentencepiece_files_give_bytes_spaces_and_added_tokens() -> None:
    vocabulary = read_vocabulary(sentencepiece())
    assert vocabulary.raw == [b"<unk>", b"</s>", b"\xc3", b"\xa9", b" bus", b" ", b"s", b"<tool>"]
    assert vocabulary.decode([4, 6, 2, 3, 1, 7]) == " busské"[:5] + "é<tool>"
    assert vocabulary.text[2] is None
    assert vocabulary.text[1] == b""


def test_end_tokens_show_nothing_whatever_the_file_says() -> None:
    assert read_vocabulary(sentencepiece(), [6]).decode([4, 6]) == " bus"


def test_unigram_vocabularies_are_lists() -> None:
    file = sentencepiece(model={"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5]]}, added_tokens=[])
    assert read_vocabulary(file).raw == [b"<unk>", b" a"]


@pytest.mark.parametrize("text", ['"', "\\", "\n\x00\x1f", "é", "\u2028", "😀", "</script>", "\x7f"])
def test_escapes_are_what_json_reads_back(text: str) -> None:
    assert json.loads(b'"' + escape(text) + b'"') == text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model":{"vocab":{"a":-1}}}',
        b'{"model":{"vocab":{"a":99999999999}}}',
        b'{"model":{"vocab":{"a":0}}}',
        b'{"model":{"vocab":{"a":0}},"decoder":{"type":"WordPiece"}}',
        b'{"model":{"vocab":[[]]},"decoder":{"type":"ByteLevel"}}',
    ],
)
def test_broken_files_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_vocabulary(data)
    with pytest.raises(Malformed):
        load_tokenizer(data)
