"""Pure. gpt-oss: messages with a channel and a recipient, one after another."""

import re

from frontend.parsing.formats import HARMONY_MARKERS
from frontend.parsing.json_calls import copy_json
from frontend.parsing.output import Output
from frontend.parsing.tape import Ended, Markers, NotACall, Reading, Tape
from frontend.parsing.values import quote

_MAX_HEADER = 512
_MARKERS = Markers(HARMONY_MARKERS)
_BODY = Markers(HARMONY_MARKERS - {"<|constrain|>", "<|message|>"})
_HEADER = re.compile(r"\s*(?:<\|channel\|>|to=|assistant\b)")
_HEADER_BEGINS = frozenset("\n <acft") | {""}
"""What headers begin with: `<|channel|>`, ` to=`, `assistant`; after a channel's marker the channel's name."""
_HEADER_ENDS = re.compile(r"<\|(?:message|start|end|call|return)\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]{1,256})")
_LAST_MESSAGE = re.compile(r"<\|start\|>assistant((?:(?!<\|start\|>).)*)\Z", re.DOTALL)


def read_harmony(
    tape: Tape, out: Output, prompt_tail: str, *, has_tools: bool, texts: frozenset[str] = frozenset()
) -> Reading[None]:
    """Read an answer. `analysis` is reasoning, a message to a function is a call, everything else is text.

    What is sent to one of `texts` may be no JSON: then it becomes the argument `input`. The prompt ends where the first
    header begins, or later. Raises `Ended` at the end.
    """
    opened = _LAST_MESSAGE.search(prompt_tail)
    header = opened[1].removesuffix("<|message|>") if opened and opened[1].endswith("<|message|>") else None
    tape.mark = tape.at
    marker = "<|start|>"
    while True:
        try:
            if header is None:
                header = yield from _header(tape, marker)
            marker = yield from _body(tape, out, header, has_tools=has_tools, texts=texts)
        except NotACall:
            marker = ""
        except Ended:
            tape.at = len(tape.text)
            raise
        finally:
            if tape.mark is not None:
                out.text(tape.text[tape.mark : tape.at])
                tape.mark = None
        header = None
        while marker not in ("<|start|>", "<|channel|>"):
            marker = yield from tape.copy_until(_MARKERS, out.text)
        tape.mark = tape.at - len(marker)


def _header(tape: Tape, marker: str) -> Reading[str]:
    """Read up to `<|message|>` and return what is before; raise `NotACall` for anything else."""
    done = 0
    if (yield from tape.peek()) not in _HEADER_BEGINS:
        raise NotACall
    while True:
        limit = tape.at + _MAX_HEADER
        found = _HEADER_ENDS.search(tape.text, tape.at + max(0, done - 10), limit)
        if found:
            header = (marker if marker == "<|channel|>" else "") + tape.text[tape.at : found.start()]
            if found[0] != "<|message|>" or not _HEADER.match(header):
                tape.at = found.start()
                raise NotACall
            tape.at = found.end()
            return header
        done = len(tape.text) - tape.at
        if done >= _MAX_HEADER:
            raise NotACall
        yield from tape.more()


def _body(tape: Tape, out: Output, header: str, *, has_tools: bool, texts: frozenset[str]) -> Reading[str]:
    """Read one message; return the marker that ends it."""
    channel = _CHANNEL.search(header)
    recipient = _RECIPIENT.search(header)
    if recipient and recipient[1] in texts and "<|constrain|>text" in header:
        tape.mark = None
        out.start_call(recipient[1])
        out.arguments('{"input": "')
        marker = yield from tape.copy_until(_BODY, lambda text: out.arguments(quote(text)[1:-1]))
        out.arguments('"}')
        return marker
    if recipient and has_tools:
        yield from tape.skip_blanks()
        if (yield from tape.peek()) != "{":
            raise NotACall
        tape.mark = None
        out.start_call(recipient[1])
        yield from copy_json(tape, out.arguments)
        return (yield from tape.copy_until(_BODY, out.text))
    tape.mark = None
    if channel and channel[1] == "analysis":
        marker = yield from tape.copy_until(_BODY, out.reasoning)
        out.end_reasoning()
        return marker
    return (yield from tape.copy_until(_BODY, out.text))
