"""Pure. Tools in the bodies of OpenAI's chat completions: what may be called, what has to be, what was called.

A custom tool takes a text. Models know functions only: they are shown one whose single argument is that text.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_ABSENT: Any = object()


def _filled_in() -> Any:
    return _ABSENT


Name = Annotated[str, Meta(min_length=1, max_length=256)]
CustomName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,256}$")]
"""Stands between tags where a grammar rules what comes after it."""


class FunctionCall(msgspec.Struct, frozen=True):
    """The call inside a tool call of an earlier turn; `arguments` is JSON in a string."""

    name: str
    arguments: str = ""


class CustomCall(msgspec.Struct, frozen=True):
    """The call of a custom tool; `input` is any text."""

    name: str
    input: str = ""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call of an earlier turn; `function` is there always, as a model is shown it."""

    id: str = ""
    type: str = "function"
    function: FunctionCall = msgspec.field(default_factory=_filled_in)
    custom: CustomCall | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a call of nothing."""
        if self.function is _ABSENT:
            if self.custom is None:
                raise ValueError("Object missing required field `function`")
            call = FunctionCall(self.custom.name, to_arguments(self.custom.input))
            msgspec.structs.force_setattr(self, "function", call)


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Name
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class InputGrammar(msgspec.Struct, frozen=True):
    """What the input of a custom tool has to be."""

    definition: str
    syntax: Literal["lark", "regex"]


class AnyText(msgspec.Struct, frozen=True, tag="text"):
    """`format` of a custom tool that takes any text."""


class GrammarText(msgspec.Struct, frozen=True, tag="grammar"):
    """`format` of a custom tool whose input follows a grammar."""

    grammar: InputGrammar


class CustomSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that takes a text."""

    name: CustomName
    description: str | None = None
    format: AnyText | GrammarText | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model may call; `function` is there always, as a model is shown it."""

    type: Literal["function", "custom"] = "function"
    function: FunctionSpec = msgspec.field(default_factory=_filled_in)
    custom: CustomSpec | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a tool that is not of its type."""
        if self.type == "custom":
            if self.custom is None:
                raise ValueError("Object missing required field `custom`")
            msgspec.structs.force_setattr(self, "function", _as_function(self.custom, self.grammar))
        elif self.function is _ABSENT:
            raise ValueError("Object missing required field `function`")

    @property
    def is_custom(self) -> bool:
        """It takes a text."""
        return self.type == "custom"

    @property
    def grammar(self) -> InputGrammar | None:
        """What the text has to be, if anything is said about that."""
        if self.custom is not None and isinstance(self.custom.format, GrammarText):
            return self.custom.format.grammar
        return None


class NamedFunction(msgspec.Struct, frozen=True):
    """The function of a named `tool_choice`."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, tag="function"):
    """`tool_choice` that names the one function to call."""

    function: NamedFunction

    @property
    def name(self) -> str:
        """What is to be called."""
        return self.function.name


class NamedCustom(msgspec.Struct, frozen=True, tag="custom"):
    """`tool_choice` that names the one custom tool to call."""

    custom: NamedFunction

    @property
    def name(self) -> str:
        """What is to be called."""
        return self.custom.name


Named = NamedTool | NamedCustom


class ToolsAllowed(msgspec.Struct, frozen=True):
    """Tools of which some may be called, or must be."""

    tools: Annotated[list[Named], Meta(max_length=512)]
    mode: Literal["auto", "required"] = "auto"


class AllowedTools(msgspec.Struct, frozen=True, tag="allowed_tools"):
    """`tool_choice` that names some of the tools."""

    allowed_tools: ToolsAllowed


ToolChoice = Literal["none", "auto", "required"] | NamedTool | NamedCustom | AllowedTools


def custom_names(tools: Iterable[Tool]) -> frozenset[str]:
    """Return the names of the custom tools among these."""
    return frozenset([tool.function.name for tool in tools if tool.is_custom])


def to_arguments(text: str) -> str:
    """Return the input of a custom tool as the arguments that a model is shown."""
    return json.dumps({"input": text}, ensure_ascii=False)


def _as_function(tool: CustomSpec, grammar: InputGrammar | None) -> FunctionSpec:
    text = {"type": "string", "description": "All of the input, as plain text."}
    if grammar is not None and grammar.syntax == "regex":
        text["pattern"] = f"^(?:{grammar.definition})$"
    elif grammar is not None:
        text["description"] += f" It follows this grammar in Lark:\n{grammar.definition}"
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    return FunctionSpec(
        name=tool.name, description=tool.description, parameters=msgspec.Raw(msgspec.json.encode(schema))
    )
