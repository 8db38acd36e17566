"""Pure. What an answer must look like, as one grammar: JSON, regular expressions, choices, grammars, tool calls.

Grammars are llguidance's, and it is asked here whether one is sound: a client hears of a bad schema before any engine
does. It is imported when the first request needs it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from bus.errors import InvalidRequest
from bus.messages.inference import MAX_GRAMMAR
from frontend import rules
from frontend.openai.body import ChatBody, CompletionBody, ResponseFormat, StructuredOutputs
from frontend.openai.tools import FunctionSpec, Tool
from frontend.parsing import CallSyntax, Format, tool_grammar
from frontend.vocabulary import Vocabulary


def grammar_for(body: ChatBody | CompletionBody, format: Format, vocabulary: Vocabulary, prompt_tail: str) -> str:
    """Return the grammar that a body asks for, empty for none.

    Raises `InvalidRequest` that names the field. `prompt_tail` tells whether the answer begins inside of a thought.
    """
    if not has_grammar(body):
        return ""
    param, content = _content(body)
    tools = _tools(body, format, has_content=bool(content))
    if not content and not tools:
        return ""
    special = vocabulary.markers
    if not tools:
        return check_grammar(_start(content, format, prompt_tail, special), param)
    if content:
        check_grammar(f"start: {content}\n", param)
    calls = _Calls(format, tools, special, is_parallel=_is_parallel(body))
    if isinstance(body, ChatBody) and body.choice != "auto":
        start = calls.rule()
    elif content:
        start = f"{calls.rule()} | {content}"
    else:
        start, prompt_tail = _in_text(calls, format, prompt_tail, special), ""
    return check_grammar(_start(start, format, prompt_tail, special) + calls.definition(), "tools")


@lru_cache(maxsize=256)
def check_grammar(lark: str, param: str) -> str:
    """Return a grammar of llguidance's Lark as it goes over the bus; raise `InvalidRequest` for an unsound one."""
    from llguidance import LLMatcher

    grammar = json.dumps({"grammars": [{"lark_grammar": lark}]}, ensure_ascii=False)
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidRequest(
            f"'{param}' makes a grammar of {len(grammar)} characters; {MAX_GRAMMAR} can be had.", param=param
        )
    reason = LLMatcher.validate_grammar(grammar)
    if reason:
        first = reason.split("\n")[0]
        cause = re.search(r"^error: (.*)", reason, re.MULTILINE) if first.endswith(":") else None
        shown = re.sub(r"^at \d+\(\d+\): ", "", f"{first} {cause[1]}" if cause else first)
        raise InvalidRequest(f"Invalid value for '{param}': {shown[:500]}.", param=param)
    return grammar


def has_grammar(body: ChatBody | CompletionBody) -> bool:
    """Say whether anything about the answer's form is asked; it seldom is, and that is told quickly."""
    return (
        body.structured_outputs is not None
        or body.guided_regex is not None
        or body.guided_choice is not None
        or body.guided_grammar is not None
        or bool(bytes(body.guided_json))
        or (
            isinstance(body, ChatBody)
            and (
                body.response_format is not None
                or body.choice not in ("none", "auto")
                or (body.tools is not None and any(tool.grammar for tool in body.tools))
            )
        )
    )


def _content(body: ChatBody | CompletionBody) -> tuple[str, str]:
    """Return the parameter that constrains the text, and a rule for it; empty where there is none."""
    found: dict[str, str] = {}
    if isinstance(body, ChatBody) and body.response_format is not None:
        found |= _of_format(body.response_format)
    if body.structured_outputs is not None:
        found |= _of_structured(body.structured_outputs, "structured_outputs.", "")
    guided = StructuredOutputs(
        json=body.guided_json, regex=body.guided_regex, choice=body.guided_choice, grammar=body.guided_grammar
    )
    found |= _of_structured(guided, "", "guided_")
    if len(found) > 1:
        raise InvalidRequest(f"{' and '.join(map(repr, found))} exclude each other.", param=next(iter(found)))
    return next(iter(found.items()), ("", ""))


def _of_format(wanted: ResponseFormat) -> dict[str, str]:
    if wanted.type == "json_object":
        return {"response_format": rules.any_json(b'{"type": "object"}', "response_format")}
    if wanted.type == "text":
        return {}
    if wanted.type == "grammar":
        if wanted.grammar is None:
            raise InvalidRequest(
                "Missing required parameter: 'response_format.grammar'.", param="response_format.grammar"
            )
        return {"response_format.grammar": rules.lark_or_gbnf(wanted.grammar, "response_format.grammar")}
    if wanted.json_schema is None or not bytes(wanted.json_schema.schema):
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema.schema'.", param="response_format.json_schema"
        )
    return {"response_format": rules.any_json(bytes(wanted.json_schema.schema), "response_format.json_schema.schema")}


def _of_structured(wanted: StructuredOutputs, path: str, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("json", "regex", "choice", "grammar"):
        value = getattr(wanted, name)
        param = f"{path}{prefix}{name}"
        if isinstance(value, msgspec.Raw):
            if bytes(value) not in (b"", b"null"):
                found[param] = rules.any_json(_unquoted(bytes(value)), param)
        elif isinstance(value, list):
            found[param] = rules.choice(value, param)
        elif value is not None:
            found[param] = rules.regex(value, param) if name == "regex" else rules.lark_or_gbnf(value, param)
    if wanted.json_object:
        found[f"{path}json_object"] = rules.any_json(b'{"type": "object"}', path)
    return found


def _unquoted(data: bytes) -> bytes:
    """Return a schema that came as JSON in a string."""
    if not data.startswith(b'"'):
        return data
    try:
        return msgspec.json.decode(data, type=str).encode()
    except (msgspec.MsgspecError, UnicodeError):
        return data


def _tools(body: ChatBody | CompletionBody, format: Format, *, has_content: bool) -> list[Tool]:
    """Return the tools whose calls the grammar has to describe: of which one must be called, or may be.

    Raises `InvalidRequest` for a choice that names none of them.
    """
    if not isinstance(body, ChatBody) or body.choice == "none":
        return []
    tools = list(body.offered)
    if body.choice == "auto":
        # Without marks around them, calls can be told from other text by no grammar.
        can_be_told = format.has_calls and not format.is_harmony and (has_content or not format.is_bare)
        is_asked = has_content or any(tool.grammar for tool in tools)
        return [_as_promised(tool) for tool in tools] if can_be_told and is_asked else []
    if not tools:
        reason = "allows none of the 'tools'" if body.tools else "is only allowed when 'tools' are specified"
        raise InvalidRequest(f"'tool_choice' {reason}.", param="tool_choice")
    if isinstance(body.choice, str):
        return tools
    name = body.choice.name
    named = [tool for tool in tools if tool.function.name == name]
    if not named:
        raise InvalidRequest(f"Tool choice {name[:100]!r} is none of the 'tools'.", param="tool_choice")
    return named[:1]


def _as_promised(tool: Tool) -> Tool:
    """Return the tool with no more said of its arguments than what was promised to hold."""
    if tool.is_custom or tool.function.strict:
        return tool
    return Tool(function=FunctionSpec(name=tool.function.name))


def _is_parallel(body: ChatBody | CompletionBody) -> bool:
    """Say whether several calls may come; a named function is called once, as OpenAI does it."""
    if not isinstance(body, ChatBody) or body.calls_functions:
        return False
    return isinstance(body.choice, str) and body.parallel_tool_calls is not False


class _Calls:
    """The rules for calls of some tools."""

    def __init__(self, format: Format, tools: Sequence[Tool], special: Mapping[str, int], *, is_parallel: bool) -> None:
        self._special = special
        self._described = tool_grammar(format, tools, is_parallel=is_parallel)

    def rule(self, opened: str = "") -> str:
        """Return a rule for all calls of an answer; `opened` is what of the first one is there already."""
        first = f"({self._each(opened)})" if opened else "call"
        if not self._described.may_repeat:
            return first
        return f"{first} ({rules.text(self._described.separator, self._special)} call){{0,15}}"

    def definition(self) -> str:
        """Return the rule that `rule` names."""
        return f"call: {self._each()}\n"

    def _each(self, opened: str = "") -> str:
        calls = self._described.calls
        return " | ".join(self._call(call._replace(begin=call.begin.removeprefix(opened))) for call in calls)

    def _call(self, call: CallSyntax) -> str:
        begin, end = rules.text(call.begin, self._special), rules.text(call.end, self._special)
        if call.grammar is not None:
            return f"{begin} {rules.lark(call.grammar.definition, 'tools')} {end}"
        return f"{begin} {rules.any_json(call.schema, 'tools')} {end}".strip()


def _in_text(calls: _Calls, format: Format, prompt_tail: str, special: Mapping[str, int]) -> str:
    """Return a rule for any text, and calls after it: what is not called is not ruled."""
    mark = format.begin
    thought = ""
    if format.reasoning is not None:
        begin, end = (rules.text(each, special) for each in (format.reasoning.begin, format.reasoning.end))
        tail = prompt_tail.rstrip()
        if tail.endswith(format.reasoning.begin):
            thought = f"(ANY {end})? " if format.reasoning.end in special else ""
        elif format.reasoning.begin in special and not tail.endswith(format.reasoning.end):
            thought = f"(ANY? {begin} ANY? {end})? "
    if mark in special:
        return f"{thought}(ANY | ANY? ({calls.rule()}))\nANY: /(?s:.*)/"
    found = re.escape(mark).replace("/", "\\/")
    other = f"ANY: /(?s:.*)/ & ~/(?s:.*){found}(?s:.*)/"
    opened = f"OPENED: /(?s:.*){found}/ & ~/(?s:.*){found}(?s:.+)/"
    return f"{thought}(ANY | OPENED ({calls.rule(mark)}))\n{other}\n{opened}"


def _start(rule: str, format: Format, prompt_tail: str, special: Mapping[str, int]) -> str:
    """Return the grammar; where the prompt ends with the opening of a thought, it takes over after that."""
    if format.reasoning is None or not prompt_tail.rstrip().endswith(format.reasoning.begin):
        return f"start: {rule}\n"
    end = format.reasoning.end
    if end in special:
        return f"start: thought <[{special[end]}]> blank rest\nthought: /(?s:.*)/\nblank: /\\s{{0,4}}/\nrest: {rule}\n"
    return (
        f"start: thought blank rest\nthought[suffix={json.dumps(end)}]: /(?s:.*)/\nblank: /\\s{{0,4}}/\nrest: {rule}\n"
    )
