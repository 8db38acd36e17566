"""Pure. The events of a streamed message, in Anthropic's order.

message_start  ping  (content_block_start  content_block_delta*  content_block_stop)+  message_delta  message_stop
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from frontend.anthropic.answers import (
    BlockShown,
    MessageShown,
    MessageUsage,
    StopShown,
    TextShown,
    ThinkingShown,
    ToolUseShown,
    UsageBody,
    WholeMessage,
    message_id,
    stop_shown,
    usage_shown,
)
from frontend.anthropic.errors import stream_error
from frontend.deltas import AnswerFacts, CallArguments, CallStart, ChoiceEnd, Delta, ReasoningDelta
from frontend.errors import ErrorBody
from frontend.pieces import TokenPiece
from frontend.request import Usage
from frontend.vocabulary import escape

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_NO_INPUT = msgspec.Raw(b"{}")

Kind = Literal["text", "thinking", "call"]


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    """A message begins."""

    message: MessageShown


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: BlockShown


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    """A block is complete."""

    index: int


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    """How the message ended, and what it took."""

    delta: StopShown
    usage: UsageBody


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Nothing: the stream lives."""


class TextPiece(msgspec.Struct, frozen=True, tag="text_delta"):
    """More text."""

    text: str


class ThinkingPiece(msgspec.Struct, frozen=True, tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignaturePiece(msgspec.Struct, frozen=True, tag="signature_delta"):
    """The end of a thought."""

    signature: str


class InputPiece(msgspec.Struct, frozen=True, tag="input_json_delta"):
    """More of the JSON that a tool is called with."""

    partial_json: str


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    """A message is complete."""


Event = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
"""Data of the events; those of deltas are put together from bytes."""


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, data)


def _delta(index: int, kind: bytes, field: bytes) -> bytes:
    """Return what stands before the text of a delta."""
    return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":"' % (
        index,
        kind,
        field,
    )


_TAIL = b'"}}\n\n'


class MessageChunks:
    """Writes one message. One block is open at a time; text, thoughts and calls each get blocks of their own."""

    head = _delta(0, b"text_delta", b"text")
    tail = _TAIL

    def __init__(self, facts: AnswerFacts, *, is_text: bool = False) -> None:
        """`is_text` opens the one block of text at once: what follows is constant bytes around text."""
        self._facts = facts
        self._is_text = is_text
        self._index = -1
        self._kind: Kind | None = None
        self._head = b""

    def opening(self) -> bytes:
        """Render the start of the message: how much of the prompt comes from the cache is known at its end only."""
        facts = self._facts
        usage = MessageUsage(facts.prompt_tokens, 0, 0)
        start = MessageStart(MessageShown(id=message_id(facts), model=facts.model, content=(), usage=usage))
        opened = self._open("text", TextShown("")) if self._is_text else b""
        return _event(b"message_start", msgspec.json.encode(start)) + _PING + opened

    def deltas(self, deltas: Sequence[Delta], pieces: Sequence[TokenPiece]) -> bytes:
        """Render deltas; this API knows no log-probabilities."""
        out = b""
        for delta in deltas:
            if isinstance(delta, CallStart):
                out += self._close() + self._open("call", ToolUseShown(delta.call_id, delta.name, _NO_INPUT))
            elif isinstance(delta, CallArguments):
                out += self._text(delta.fragment)
            elif isinstance(delta, ReasoningDelta):
                if self._kind != "thinking":
                    out += self._close() + self._open("thinking", ThinkingShown("", ""))
                out += self._text(delta.text)
            else:
                if self._kind != "text":
                    out += self._close() + self._open("text", TextShown(""))
                out += self._text(delta.text)
        return out

    def closing(self, end: ChoiceEnd, usage: Usage) -> bytes:
        """Close the last block and say how the message ended; one without any block gets an empty text."""
        opened = self._open("text", TextShown("")) if self._index < 0 else b""
        data = msgspec.json.encode(MessageDelta(stop_shown(end), usage_shown(UsageBody, usage)))
        return opened + self._close() + _event(b"message_delta", data) + _STOP

    def broken(self, error: ErrorBody) -> bytes:
        """Render the error event."""
        return _event(b"error", stream_error(error, self._facts.request_id))

    def _text(self, text: str) -> bytes:
        return self._head + escape(text) + _TAIL

    def _open(self, kind: Kind, block: BlockShown) -> bytes:
        self._index += 1
        self._kind = kind
        self._head = {
            "text": _delta(self._index, b"text_delta", b"text"),
            "thinking": _delta(self._index, b"thinking_delta", b"thinking"),
            "call": _delta(self._index, b"input_json_delta", b"partial_json"),
        }[kind]
        return _event(b"content_block_start", msgspec.json.encode(BlockStart(self._index, block)))

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        signed = b""
        if self._kind == "thinking":
            signed = _delta(self._index, b"signature_delta", b"signature") + escape(self._facts.request_id) + _TAIL
        self._kind = None
        return signed + _event(b"content_block_stop", msgspec.json.encode(BlockStop(self._index)))


class AnthropicDialect:
    """How Anthropic's API answers a turn."""

    def chunks(self, facts: AnswerFacts, number: int) -> MessageChunks:
        """Return the writer of a stream; there is one choice."""
        return MessageChunks(facts)

    def text_chunks(self, facts: AnswerFacts, number: int) -> MessageChunks:
        """Return the writer of a message that is one block of text."""
        return MessageChunks(facts, is_text=True)

    def ending(self, facts: AnswerFacts, usage: Usage) -> bytes:
        """Render nothing: the message ended itself."""
        return b""

    def whole(self, facts: AnswerFacts) -> WholeMessage:
        """Return the writer of a message in one piece."""
        return WholeMessage(facts)
