"""Pure. The chunks of a stream, in the shapes of OpenAI's API, rendered as far as possible before the first token."""

from collections.abc import Sequence

import msgspec

from frontend.deltas import AnswerFacts, CallArguments, CallStart, ChoiceEnd, Delta, TextDelta
from frontend.errors import ErrorBody, envelope
from frontend.openai.answers import TOOL_CALLS, CallShape, ChatAnswer, CompletionAnswer, usage_body
from frontend.openai.logprobs import chat_logprobs, completion_logprobs
from frontend.pieces import TokenPiece
from frontend.request import Usage
from frontend.vocabulary import Vocabulary, escape

DONE = b"data: [DONE]\n\n"


class StreamShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants of the chunks of a stream."""

    include_usage: bool = False
    continuous_usage: bool = False
    """Every chunk tells the usage so far."""
    logprobs_of: Vocabulary | None = None
    """None leaves log-probabilities out."""
    prompts: Sequence[Sequence[int]] = ()
    """Token ids of the prompts, where the client wants ids beside the text."""
    calls: CallShape = TOOL_CALLS
    tier: str = ""
    """In which the request is served, if it named one."""


class _Frame:
    """What all chunks of a stream have around their choice."""

    def __init__(self, prefix: bytes, kind: bytes, facts: AnswerFacts, shape: StreamShape) -> None:
        model = msgspec.json.encode(facts.model)
        if shape.tier:
            model += b',"service_tier":"%b"' % shape.tier.encode()
        self.start = b'data: {"id":"%b%b","object":"%b","created":%d,"model":%b,"choices":[' % (
            prefix,
            facts.request_id.encode(),
            kind,
            facts.created,
            model,
        )
        # OpenAI says `usage: null` on every chunk before the one that has it.
        self.end = b'],"usage":null}\n\n' if shape.include_usage else b"]}\n\n"

    def usage_chunk(self, usage: Usage) -> bytes:
        """Render the chunk that has the usage and no choice."""
        return b'%b],"usage":%b}\n\n' % (self.start, msgspec.json.encode(usage_body(usage)))


class _Chunks:
    """What the chunks of both endpoints share."""

    def __init__(self, frame: _Frame, facts: AnswerFacts, shape: StreamShape, before: bytes, after: bytes) -> None:
        self._frame = frame
        self._shape = shape
        self._prompt_tokens = facts.prompt_tokens
        self._num_tokens = 0
        self.head = frame.start + before
        self.tail = after + b'null,"finish_reason":null}' + frame.end

    def _end(self, pieces: Sequence[TokenPiece]) -> bytes:
        if not self._shape.continuous_usage:
            return self._frame.end
        self._num_tokens += sum([piece.start >= 0 for piece in pieces])
        usage = Usage(self._prompt_tokens, self._num_tokens, 0)
        return b'],"usage":%b}\n\n' % msgspec.json.encode(usage_body(usage))

    def _ids(self, pieces: Sequence[TokenPiece]) -> bytes:
        """Render the ids of generated tokens as one more field of a choice, if they are wanted."""
        if not self._shape.prompts:
            return b""
        return b',"token_ids":%b' % msgspec.json.encode([piece.token for piece in pieces if piece.start >= 0])

    def broken(self, error: ErrorBody) -> bytes:
        """Render the error as an event of its own."""
        return b"data: %b\n\n" % envelope(error)


class ChatChunks(_Chunks):
    """Chunks of one choice of a chat completion."""

    def __init__(self, frame: _Frame, facts: AnswerFacts, shape: StreamShape, number: int) -> None:
        self._choice = b'{"index":%d,"delta":{' % number
        self._custom = -1
        """The last call of a custom tool."""
        super().__init__(frame, facts, shape, self._choice + b'"content":"', b'"},"logprobs":')

    def opening(self) -> bytes:
        """Render the role."""
        empty = self._choice + b'"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        end = self._frame.end
        if self._shape.prompts:
            end = b'],"prompt_token_ids":%b%b' % (msgspec.json.encode(self._shape.prompts[0]), end[1:])
        return self._frame.start + empty + end

    def deltas(self, deltas: Sequence[Delta], pieces: Sequence[TokenPiece]) -> bytes:
        """Render a chunk for each delta; log-probabilities go with the first."""
        end = self._end(pieces)
        logprobs = b"null"
        if self._shape.logprobs_of is not None and pieces:
            logprobs = chat_logprobs(self._shape.logprobs_of, pieces)
        ids = self._ids(pieces)
        chunks = []
        for delta in deltas or (TextDelta(""),):
            chunks += [self._frame.start, self._choice, self._delta(delta), b'},"logprobs":', logprobs]
            chunks += [b',"finish_reason":null', ids, b"}", end]
            logprobs, ids = b"null", b""
        return b"".join(chunks)

    def closing(self, end: ChoiceEnd, usage: Usage) -> bytes:
        """Render the chunk with the finish reason."""
        reason = self._shape.calls.ending if end.reason == "tool_calls" else end.reason
        shown = b'},"logprobs":null,"finish_reason":"%b"}' % reason.encode()
        return self._frame.start + self._choice + shown + self._frame.end

    def _delta(self, delta: Delta) -> bytes:
        """Render the inside of `delta`."""
        if isinstance(delta, TextDelta):
            return b'"content":"%b"' % escape(delta.text)
        if isinstance(delta, CallStart):
            if self._shape.calls.is_function:
                return b'"function_call":{"name":%b,"arguments":""}' % msgspec.json.encode(delta.name)
            if delta.name in self._shape.calls.custom:
                self._custom = delta.call
            kind, field = self._call(delta.call)
            return b'"tool_calls":[{"index":%d,"id":%b,"type":"%b","%b":{"name":%b,"%b":""}}]' % (
                delta.call,
                msgspec.json.encode(delta.call_id),
                kind,
                kind,
                msgspec.json.encode(delta.name),
                field,
            )
        if isinstance(delta, CallArguments):
            if self._shape.calls.is_function:
                return b'"function_call":{"arguments":"%b"}' % escape(delta.fragment)
            kind, field = self._call(delta.call)
            return b'"tool_calls":[{"index":%d,"%b":{"%b":"%b"}}]' % (delta.call, kind, field, escape(delta.fragment))
        text = escape(delta.text)  # under the two names that clients look for
        return b'"reasoning_content":"%b","reasoning":"%b"' % (text, text)

    def _call(self, call: int) -> tuple[bytes, bytes]:
        """Return what kind of tool is called, and what that calls its input."""
        return (b"custom", b"input") if call == self._custom else (b"function", b"arguments")


class CompletionChunks(_Chunks):
    """Chunks of one choice of a completion."""

    def __init__(
        self,
        frame: _Frame,
        facts: AnswerFacts,
        shape: StreamShape,
        number: int,
        *,
        echo: str = "",
        prompt: Sequence[int] = (),
    ) -> None:
        """`echo` is the prompt, where it is shown before the text; `prompt` its ids, where they are wanted."""
        self._held_prompt = b',"prompt_token_ids":%b' % msgspec.json.encode(prompt) if prompt else b""
        self._choice = b'{"index":%d,"text":"' % number
        self._echo = echo
        self._held_echo = echo if shape.logprobs_of is not None else ""
        super().__init__(frame, facts, shape, self._choice, b'","logprobs":')

    def opening(self) -> bytes:
        """Render the prompt, if it is wanted; its log-probabilities are known with the first token only."""
        return self.head + escape(self._echo) + self.tail if self._echo and not self._held_echo else b""

    def deltas(self, deltas: Sequence[Delta], pieces: Sequence[TokenPiece]) -> bytes:
        """Render one chunk."""
        text = self._held_echo + "".join([delta.text for delta in deltas if isinstance(delta, TextDelta)])
        self._held_echo = ""
        logprobs = b"null"
        if self._shape.logprobs_of is not None:
            logprobs = completion_logprobs(self._shape.logprobs_of, pieces, len(self._echo))
        end = self._end(pieces)
        ids = self._ids(pieces) + self._held_prompt
        self._held_prompt = b""
        return b'%b%b","logprobs":%b,"finish_reason":null%b}%b' % (self.head, escape(text), logprobs, ids, end)

    def closing(self, end: ChoiceEnd, usage: Usage) -> bytes:
        """Render the chunk with the finish reason."""
        return b'%b","logprobs":null,"finish_reason":"%b"}%b' % (self.head, end.reason.encode(), self._frame.end)


class _Dialect:
    """What the dialects of both endpoints share: `[DONE]`, and the usage before it if wanted."""

    prefix: bytes
    kind: bytes

    def __init__(self, shape: StreamShape) -> None:
        self._shape = shape
        self._made: _Frame | None = None

    def ending(self, facts: AnswerFacts, usage: Usage) -> bytes:
        """Render what comes after the last choice."""
        return self._frame(facts).usage_chunk(usage) + DONE if self._shape.include_usage else DONE

    def _frame(self, facts: AnswerFacts) -> _Frame:
        if self._made is None:
            self._made = _Frame(self.prefix, self.kind, facts, self._shape)
        return self._made


class ChatDialect(_Dialect):
    """How chat completions are answered."""

    prefix = b"chatcmpl-"
    kind = b"chat.completion.chunk"

    def chunks(self, facts: AnswerFacts, number: int) -> ChatChunks:
        """Return the writer of a choice."""
        return ChatChunks(self._frame(facts), facts, self._shape, number)

    def text_chunks(self, facts: AnswerFacts, number: int) -> ChatChunks | None:
        """Return the writer of a choice that is nothing but text."""
        return None if self._shape.continuous_usage else self.chunks(facts, number)

    def whole(self, facts: AnswerFacts) -> ChatAnswer:
        """Return the writer of an answer in one piece."""
        shape = self._shape
        return ChatAnswer(facts, shape.logprobs_of, shape.prompts, shape.calls, shape.tier)


class CompletionDialect(_Dialect):
    """How completions are answered."""

    prefix = b"cmpl-"
    kind = b"text_completion"

    def __init__(
        self, shape: StreamShape, *, echoes: Sequence[str] = (), num_choices: int = 1, is_only_echo: bool = False
    ) -> None:
        """`echoes` are the prompts that choices begin with, `num_choices` each; empty for none. `is_only_echo`
        leaves out what was generated."""
        super().__init__(shape)
        self._echoes = echoes
        self._num_choices = num_choices
        self._is_only_echo = is_only_echo

    def chunks(self, facts: AnswerFacts, number: int) -> CompletionChunks:
        """Return the writer of a choice."""
        place = number // self._num_choices
        echo = self._echoes[place] if self._echoes else ""
        prompt = self._shape.prompts[place] if self._shape.prompts else ()
        return CompletionChunks(self._frame(facts), facts, self._shape, number, echo=echo, prompt=prompt)

    def text_chunks(self, facts: AnswerFacts, number: int) -> CompletionChunks | None:
        """Return the writer of a choice that is nothing but text."""
        return None if self._shape.continuous_usage else self.chunks(facts, number)

    def whole(self, facts: AnswerFacts) -> CompletionAnswer:
        """Return the writer of an answer in one piece."""
        return CompletionAnswer(
            facts,
            self._shape.logprobs_of,
            self._echoes,
            self._num_choices,
            is_only_echo=self._is_only_echo,
            prompts=self._shape.prompts,
        )
