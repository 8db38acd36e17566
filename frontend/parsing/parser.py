"""Pure. The parser of one choice: text as it comes, deltas as soon as they are certain."""

import re
from collections.abc import Callable, Sequence

import msgspec

from frontend.deltas import Delta, Parser
from frontend.openai.tools import Tool, custom_names
from frontend.parsing.custom import CustomInputs
from frontend.parsing.formats import AS_TEXT, Format, Named, Tagged
from frontend.parsing.harmony import read_harmony
from frontend.parsing.json_calls import copy_json, read_call_object
from frontend.parsing.output import Output
from frontend.parsing.tagged_calls import TaggedCalls
from frontend.parsing.tape import Ended, Markers, NotACall, Reading, Tape
from frontend.parsing.values import parameter_types

_MAX_HEAD = 384
"""Characters between the opening of a call and the object of its arguments."""
_OBJECT = re.compile(r"\{")

RandomCharacters = Callable[[int], str]
"""Returns so many random letters and digits."""


def parser_for(
    format: Format, prompt_tail: str, tools: Sequence[Tool], random_characters: RandomCharacters
) -> Callable[[], Parser] | None:
    """Return what makes the parser of each choice, or None where its text is all there is: no tools, no reasoning.

    `prompt_tail` is the end of the prompt's text (64 characters are enough): it says whether the model goes on
    within reasoning that the prompt opened, or will not reason because the prompt closed it. `tools` are those that
    may be called.
    """
    has_calls = bool(tools) and format.has_calls
    may_reason = format.reasoning is not None and not prompt_tail.rstrip().endswith(format.reasoning.end)
    if not (format.is_harmony or has_calls or may_reason):
        return None
    custom = custom_names(tools)
    if custom:
        return lambda: CustomInputs(_Parser(format, prompt_tail, tools, random_characters), custom)
    return lambda: _Parser(format, prompt_tail, tools, random_characters)


class _Parser:
    """Feeds a reader. It raises nothing and holds no more than `MAX_HELD` characters of what may be a call."""

    def __init__(
        self, format: Format, prompt_tail: str, tools: Sequence[Tool], random_characters: RandomCharacters
    ) -> None:
        tail = prompt_tail.rstrip()
        reasoning = format.reasoning
        self._tape = Tape()
        self._out = Output(
            lambda name, number: _new_id(format, name, number, random_characters),
            in_reasoning=reasoning is not None and tail.endswith(reasoning.begin),
        )
        self._reader = (
            read_harmony(self._tape, self._out, prompt_tail, has_tools=bool(tools), texts=_written_as_text(tools))
            if format.is_harmony
            else _Answer(format, tools, self._tape, self._out).read(tail)
        )
        self._is_done = False

    def push(self, text: str) -> list[Delta]:
        """Take the next characters."""
        if self._is_done:
            return []
        self._tape.feed(text)
        self._run()
        return self._out.take()

    def finish(self) -> list[Delta]:
        """Take the end."""
        if not self._is_done:
            self._tape.is_ended = True
            self._run()
            self._is_done = True
            self._out.finish()
        return self._out.take()

    def _run(self) -> None:
        try:
            next(self._reader)
        except Ended:
            self._is_done = True


def _written_as_text(tools: Sequence[Tool]) -> frozenset[str]:
    """Return the tools whose input may be written as it is (`AS_TEXT`)."""
    return frozenset(tool.function.name for tool in tools if tool.grammar is not None)


def _new_id(format: Format, name: str, number: int, random_characters: RandomCharacters) -> str:
    """Return an id in the form that the family's template wants to see again."""
    if format.ids == "mistral":
        return random_characters(9)
    if format.ids == "kimi":
        return f"functions.{name}:{number}"
    return f"call_{random_characters(24)}"


class _Answer:
    """The reader of all families but gpt-oss."""

    def __init__(self, format: Format, tools: Sequence[Tool], tape: Tape, out: Output) -> None:
        self._format = format
        self._tape = tape
        self._out = out
        self._names = frozenset(tool.function.name for tool in tools)
        self._openers = frozenset(filter(None, (format.begin, format.call))) if tools else frozenset()
        self._types_of = lambda name: parameter_types(tools, name)
        self._as_text = (
            msgspec.structs.replace(AS_TEXT, begin=format.begin, end=format.end) if _written_as_text(tools) else None
        )

    def read(self, prompt_tail: str) -> Reading[None]:
        """Read it all; raise `Ended` at the end."""
        tape, out, reasoning = self._tape, self._out, self._format.reasoning
        thoughts = frozenset[str]()
        if reasoning and prompt_tail.endswith(reasoning.begin):
            yield from self._reasoning(reasoning.end)
        if reasoning and not prompt_tail.endswith(reasoning.end):
            thoughts = frozenset({reasoning.begin})
        if self._format.is_bare and self._names:
            tape.mark = tape.at
            yield from self._calls("", bare=True)
        markers = Markers(self._openers | thoughts)
        while True:
            marker = yield from tape.copy_until(markers, out.text)
            if marker in self._openers:
                tape.mark = tape.at - len(marker)
                yield from self._calls(marker)
            elif out.has_text:
                out.text(marker)
            else:
                yield from self._reasoning(reasoning.end if reasoning else "")

    def _reasoning(self, end: str) -> Reading[None]:
        yield from self._tape.copy_until(Markers([end]), self._out.reasoning)
        self._out.end_reasoning()

    def _calls(self, opener: str, *, bare: bool = False) -> Reading[None]:
        """Read the calls of a block; what turns out to be none of them is text."""
        tape = self._tape
        try:
            yield from self._block(opener, self._names if bare else None)
        except NotACall:
            pass
        except Ended:
            tape.at = len(tape.text)
            raise
        finally:
            if tape.mark is not None:
                self._out.text(tape.text[tape.mark : tape.at])
                tape.mark = None

    def _block(self, opener: str, names: frozenset[str] | None) -> Reading[None]:
        tape, format = self._tape, self._format
        is_inside = bool(format.call) and opener == format.call
        if not is_inside:
            yield from tape.skip_blanks()
            if (yield from tape.peek()) in ("{", "["):
                yield from self._objects(names)
                return
            if self._as_text and (yield from tape.skip(self._as_text.call)):
                format = self._as_text
            elif format.style is None:
                raise NotACall
            else:
                yield from tape.expect(format.call)
        while True:
            yield from self._call(format)
            for end in format.call_ends:
                yield from tape.skip_blanks()
                yield from tape.skip(end)
            yield from tape.skip_blanks()
            tape.mark = tape.at
            if not format.call or not (yield from tape.skip(format.call)):
                break
        tape.mark = None
        yield from tape.skip(format.end)

    def _call(self, format: Format) -> Reading[None]:
        style = format.style
        if isinstance(style, Tagged):
            end = format.call_ends[0] if format.call_ends else format.end
            yield from TaggedCalls(style, end, self._types_of).read(self._tape, self._out)
        elif style is not None:
            yield from _read_named(style, self._tape, self._out)

    def _objects(self, names: frozenset[str] | None) -> Reading[None]:
        tape = self._tape
        yield from tape.skip("[")
        while True:
            yield from tape.skip_blanks()
            yield from read_call_object(tape, self._out, names)
            yield from tape.skip_blanks()
            tape.mark = tape.at
            if not (yield from tape.skip(",")):
                yield from tape.skip(";")
            yield from tape.skip_blanks()
            if (yield from tape.peek()) != "{":
                break
        tape.at, tape.mark = tape.mark, None
        yield from tape.skip_blanks()
        yield from tape.skip("]")
        yield from tape.skip_blanks()
        yield from tape.skip(self._format.end)


def _read_named(style: Named, tape: Tape, out: Output) -> Reading[None]:
    head = yield from tape.head(_OBJECT, _MAX_HEAD)
    found = style.head.fullmatch(head)
    if found is None:
        raise NotACall
    tape.mark = None
    out.start_call(found["name"], found.groupdict().get("id") or "")
    yield from copy_json(tape, out.arguments)
