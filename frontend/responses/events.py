"""Pure. The events of a streamed response, in OpenAI's order, numbered from 0.

created  in_progress  (output_item.added  content_part.added  *.delta*  *.done  content_part.done
output_item.done)*  completed | incomplete | failed
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from frontend.deltas import AnswerFacts, CallArguments, CallStart, Choice, ChoiceEnd, Delta, ReasoningDelta, TextDelta
from frontend.errors import ErrorBody
from frontend.openai.logprobs import token_logprobs
from frontend.pieces import TokenPiece
from frontend.request import Usage
from frontend.responses.answers import (
    FunctionCallShown,
    ItemShown,
    ItemStatus,
    Made,
    MessageShown,
    OutputText,
    ReasoningShown,
    ReasoningText,
    ResponseShown,
    Terms,
    as_asked,
    ended,
    failed,
    is_custom,
    item_id,
    usage_shown,
)
from frontend.responses.tools import Name
from frontend.vocabulary import escape

_json = msgspec.json.encode
_CUSTOM = "custom_tool_call_input"
_FIELDS = {"function_call_arguments": b"arguments", _CUSTOM: b"input"}
"""What the event that ends a family calls the whole of it; `text` for the others."""


class ResponseEvent(msgspec.Struct, frozen=True):
    """What all events have; the rest goes by their type."""

    type: str
    sequence_number: int
    response: ResponseShown | None = None
    item: ItemShown | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None


class _OpenItem:
    """The item that is being written: what came of it so far, and the bytes around its deltas."""

    __slots__ = ("_names", "delta", "family", "id", "index", "logprobs", "name", "parts", "start")

    def __init__(self, family: str, id: str, index: int, start: CallStart | None, names: Mapping[str, Name]) -> None:
        self._names = names
        self.family = family
        """`output_text`, `reasoning_text` or a key of `_FIELDS`, as events name it."""
        self.id = id
        self.index = index
        self.start = start
        self.parts: list[str] = []
        self.logprobs: list[bytes] = []
        place = b'"item_id":"%b","output_index":%d,' % (id.encode(), index)
        self.name = place if start else place + b'"content_index":0,'
        kind = b"response.%b.delta" % family.encode()
        self.delta = b'event: %b\ndata: {"type":"%b",%b"sequence_number":' % (kind, kind, self.name)
        """What stands before the number of a delta."""

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def part(self, text: str) -> OutputText | ReasoningText | None:
        """Return the content part with that text; calls have none."""
        if self.start:
            return None
        if self.family == "reasoning_text":
            return ReasoningText(text)
        return OutputText(text, logprobs=msgspec.Raw(self.all_logprobs))

    @property
    def all_logprobs(self) -> bytes:
        return b"[%b]" % b",".join(self.logprobs)

    def shown(self, status: ItemStatus) -> ItemShown:
        """Return the item as it is now."""
        text = self.text
        if self.start:
            call = FunctionCallShown(
                id=self.id, status=status, call_id=self.start.call_id, name=self.start.name, arguments=text
            )
            return as_asked(call, self._names)
        part = self.part(text)
        if isinstance(part, ReasoningText):
            return ReasoningShown(id=self.id, status=status, content=(part,))
        assert part is not None
        return MessageShown(id=self.id, status=status, content=(part,))


class ResponseChunks:
    """Writes one response. Text, thoughts and calls each get items of their own; one is open at a time."""

    def __init__(self, shown: ResponseShown, terms: Terms, on_made: Callable[[Made], None]) -> None:
        """`on_made` gets the response when it has ended."""
        self._shown = shown
        self._terms = terms
        self._on_made = on_made
        self._next_number = 0
        self._has_begun = False
        self._open: _OpenItem | None = None
        self._items: list[ItemShown] = []

    def opening(self) -> bytes:
        """Render the response as it begins, the first time."""
        if self._has_begun:
            return b""
        self._has_begun = True
        self._shown = msgspec.structs.replace(self._shown, status="in_progress")
        begun = b'"response":' + _json(self._shown)
        return self._event("response.created", begun) + self._event("response.in_progress", begun)

    def deltas(self, deltas: Sequence[Delta], pieces: Sequence[TokenPiece]) -> bytes:
        """Render deltas; log-probabilities go with the first text among them."""
        out = b""
        for delta in deltas:
            if isinstance(delta, CallStart):
                kind = (
                    ("ctc", _CUSTOM) if is_custom(delta.name, self._terms.names) else ("fc", "function_call_arguments")
                )
                out += self._close("completed") + self._begin(*kind, delta)
            elif isinstance(delta, CallArguments):
                out += self._text(delta.fragment, b"")
            elif isinstance(delta, ReasoningDelta):
                if self._open is None or self._open.family != "reasoning_text":
                    out += self._close("completed") + self._begin("rs", "reasoning_text")
                out += self._text(delta.text, b"")
            else:
                if self._open is None or self._open.family != "output_text":
                    out += self._close("completed") + self._begin("msg", "output_text")
                out += self._text(delta.text, self._take_logprobs(pieces))
                pieces = ()
        return out

    def closing(self, end: ChoiceEnd, usage: Usage) -> bytes:
        """Close the last item and the response; one without any item gets an empty text."""
        out = b"" if self._items or self._open else self._begin("msg", "output_text")
        out += self._close("incomplete" if end.reason in ("length", "abort") else "completed")
        return out + self._end(ended(self._shown, self._items, end, usage_shown(usage), int(self._terms.clock())))

    def broken(self, error: ErrorBody) -> bytes:
        """Close the last item and say that the response failed."""
        out = self._close("incomplete")
        return out + self._end(failed(self._shown, error, self._items))

    def _end(self, shown: ResponseShown) -> bytes:
        body = _json(shown)
        self._on_made(Made(shown.status, body))
        return self._event(f"response.{shown.status}", b'"response":' + body)

    def _event(self, name: str, fields: bytes) -> bytes:
        number, self._next_number = self._next_number, self._next_number + 1
        kind = name.encode()
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, number, fields)

    def _take_logprobs(self, pieces: Sequence[TokenPiece]) -> bytes:
        if self._terms.logprobs_of is None or not pieces or self._open is None:
            return b""
        rendered = token_logprobs(self._terms.logprobs_of, pieces)[1:-1]
        self._open.logprobs.append(rendered)
        return rendered

    def _begin(self, prefix: str, family: str, start: CallStart | None = None) -> bytes:
        index = len(self._items)
        item = self._open = _OpenItem(family, item_id(prefix, self._shown.id, index), index, start, self._terms.names)
        shown = item.shown("in_progress")
        if isinstance(shown, MessageShown | ReasoningShown):
            shown = msgspec.structs.replace(shown, content=())
        out = self._event("response.output_item.added", b'"output_index":%d,"item":%b' % (index, _json(shown)))
        part = item.part("")
        return out if part is None else out + self._part_event("added", item, part)

    def _text(self, text: str, logprobs: bytes) -> bytes:
        item = self._open
        if item is None:
            return b""
        item.parts.append(text)
        number, self._next_number = self._next_number, self._next_number + 1
        shown = b',"logprobs":[%b]' % logprobs if item.family == "output_text" else b""
        return b'%b%d,"delta":"%b"%b}\n\n' % (item.delta, number, escape(text), shown)

    def _close(self, status: ItemStatus) -> bytes:
        item = self._open
        if item is None:
            return b""
        self._open = None
        text = item.text
        shown = item.shown(status)
        fields = item.name + (b'"name":%b,' % _json(shown.name) if isinstance(shown, FunctionCallShown) else b"")
        fields += b'"%b":"%b"' % (_FIELDS.get(item.family, b"text"), escape(text))
        if item.family == "output_text":
            fields += b',"logprobs":' + item.all_logprobs
        out = self._event(f"response.{item.family}.done", fields)
        part = item.part(text)
        if part is not None:
            out += self._part_event("done", item, part)
        self._items.append(shown)
        fields = b'"output_index":%d,"item":%b' % (item.index, _json(shown))
        return out + self._event("response.output_item.done", fields)

    def _part_event(self, what: str, item: _OpenItem, part: OutputText | ReasoningText) -> bytes:
        return self._event(f"response.content_part.{what}", b'%b"part":%b' % (item.name, _json(part)))


class WholeResponse:
    """Writes a response in one piece: what its events would come to."""

    def __init__(self, dialect: "ResponsesDialect", chunks: ResponseChunks) -> None:
        self._dialect = dialect
        self._chunks = chunks

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render the one choice."""
        choice = choices[0]
        self._chunks.deltas(_deltas(choice), choice.pieces)
        self._chunks.closing(choice.end, usage)
        assert self._dialect.made is not None
        return self._dialect.made.body


def _deltas(choice: Choice) -> list[Delta]:
    """Return what a choice says, in the order of the response's items."""
    deltas: list[Delta] = []
    if choice.reasoning:
        deltas.append(ReasoningDelta(choice.reasoning))
    if choice.text:
        deltas.append(TextDelta(choice.text))
    for number, call in enumerate(choice.calls):
        deltas += (CallStart(number, call.call_id, call.name), CallArguments(number, call.arguments))
    return deltas


class ResponsesDialect:
    """How the Responses API answers a turn; it keeps what the response came to in `made`."""

    def __init__(self, shown: ResponseShown, terms: Terms) -> None:
        self._chunks = ResponseChunks(shown, terms, self._keep)
        self.made: Made | None = None

    def opening(self) -> bytes:
        """Render how the response begins, for who is told before there is a token: its stream begins behind that."""
        return self._chunks.opening()

    def chunks(self, facts: AnswerFacts, number: int) -> ResponseChunks:
        """Return the writer of a stream; there is one choice."""
        return self._chunks

    def text_chunks(self, facts: AnswerFacts, number: int) -> None:
        """Return nothing cheaper: the numbers of its events are no constant bytes."""
        return

    def ending(self, facts: AnswerFacts, usage: Usage) -> bytes:
        """Render nothing: the response ended itself."""
        return b""

    def whole(self, facts: AnswerFacts) -> WholeResponse:
        """Return the writer of a response in one piece."""
        return WholeResponse(self, self._chunks)

    def _keep(self, made: Made) -> None:
        self.made = made
