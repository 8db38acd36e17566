"""Pure. How each family of models writes reasoning and tool calls, as data.

Any block of calls may also hold JSON objects `{"name": ..., "arguments": {...}}`, alone, in a row or in a list: older
templates of several families do so, and a grammar that forces a call uses it where a family's own form is no JSON.
"""

import re
from typing import Literal

import msgspec


class Reasoning(msgspec.Struct, frozen=True):
    """What is around the text that a model thinks."""

    begin: str
    end: str


class Named(msgspec.Struct, frozen=True):
    """Calls whose name comes before a JSON object of arguments."""

    head: re.Pattern[str]
    """All that is between the call's opening and the object, with groups `name` and perhaps `id`."""
    separators: tuple[str, ...] = ()
    """Markers within the head."""


class Tagged(msgspec.Struct, frozen=True):
    """Calls whose parameters are written one by one, as text between tags."""

    name_end: str
    """Empty: the name ends at white space or a tag."""
    parameter: str
    """Opens a parameter; its name follows, in quotes or not, up to `parameter_name_end`."""
    parameter_name_end: str
    value: str
    """Opens the value where that is a tag of its own."""
    value_end: str
    has_lines: bool = False
    """A line break at each end of a value is none of it."""


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """One family. Empty markers are not written."""

    name: str
    begin: str = ""
    """Opens a block of calls."""
    end: str = ""
    call: str = ""
    """Opens one call within a block."""
    call_ends: tuple[str, ...] = ()
    """Closes a call: each of them in turn, if it is there."""
    style: Named | Tagged | None = None
    """None: JSON objects only."""
    is_bare: bool = False
    """A text that is a JSON object which calls a known function is a call without any marker."""
    reasoning: Reasoning | None = None
    ids: Literal["call", "mistral", "kimi"] = "call"
    is_harmony: bool = False

    @property
    def has_calls(self) -> bool:
        """Tool calls of this family can be read."""
        return bool(self.begin) or self.is_harmony

    @property
    def markers(self) -> frozenset[str]:
        """Every string that means something here: the special tokens whose text the parser must see."""
        if self.is_harmony:
            return HARMONY_MARKERS
        thought = (self.reasoning.begin, self.reasoning.end) if self.reasoning else ()
        within: tuple[str, ...] = ()
        if isinstance(self.style, Named):
            within = self.style.separators
        elif isinstance(self.style, Tagged):
            within = (self.style.parameter, self.style.parameter_name_end, self.style.value, self.style.value_end)
        return frozenset(filter(None, (self.begin, self.end, self.call, *self.call_ends, *thought, *within)))


THINK = Reasoning("<think>", "</think>")
THINK_BRACKETS = Reasoning("[THINK]", "[/THINK]")
THOUGHT_PROCESS = Reasoning("Here is my thought process:", "Here is my response:")

HARMONY_MARKERS = frozenset(
    {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"}
)
_NAME = r"(?P<name>[^\s<>\[\]{}()\"'`|｜]{1,256}?)"

PLAIN = Format(name="none")
HERMES = Format(name="hermes", begin="<tool_call>", end="</tool_call>")
LLAMA3 = Format(name="llama3", begin="<|python_tag|>", is_bare=True)
GRANITE = Format(name="granite", begin="<|tool_call|>", end="<|/tool_call|>")
MINIMAX_M1 = Format(name="minimax_m1", begin="<tool_calls>", end="</tool_calls>", reasoning=THINK)
MISTRAL = Format(
    name="mistral",
    begin="[TOOL_CALLS]",
    style=Named(
        re.compile(rf"\s*{_NAME}\s*(?:\[CALL_ID\](?P<id>\w{{1,64}}))?(?:\[ARGS\])?\s*"), ("[ARGS]", "[CALL_ID]")
    ),
    ids="mistral",
)
DEEPSEEK = Format(
    name="deepseek",
    begin="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
    call="<｜tool▁call▁begin｜>",
    call_ends=("```", "<｜tool▁call▁end｜>"),
    style=Named(
        re.compile(rf"\s*(?:function<｜tool▁sep｜>(?=[^`]+```))?{_NAME}(?:<｜tool▁sep｜>|\s*```(?:json)?)\s*"),
        ("<｜tool▁sep｜>",),
    ),
)
KIMI = Format(
    name="kimi",
    begin="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
    call="<|tool_call_begin|>",
    call_ends=("<|tool_call_end|>",),
    style=Named(
        re.compile(rf"\s*(?P<id>(?:functions\.)?{_NAME}(?::\d+)?)\s*<\|tool_call_argument_begin\|>\s*"),
        ("<|tool_call_argument_begin|>",),
    ),
    ids="kimi",
)
QWEN3_CODER = Format(
    name="qwen3_coder",
    begin="<tool_call>",
    end="</tool_call>",
    call="<function=",
    call_ends=("</function>",),
    style=Tagged(">", "<parameter=", ">", "", "</parameter>", has_lines=True),
)
AS_TEXT = QWEN3_CODER
"""How any family writes a call whose input is a text that a grammar rules: JSON would have to quote it."""
GLM = Format(
    name="glm",
    begin="<tool_call>",
    end="</tool_call>",
    style=Tagged("", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
MINIMAX_M2 = Format(
    name="minimax_m2",
    begin="<minimax:tool_call>",
    end="</minimax:tool_call>",
    call="<invoke name=",
    call_ends=("</invoke>",),
    style=Tagged(">", "<parameter name=", ">", "", "</parameter>"),
    reasoning=THINK,
)
DEEPSEEK_V32 = Format(
    name="deepseek_v32",
    begin="<｜DSML｜function_calls>",
    end="</｜DSML｜function_calls>",
    call="<｜DSML｜invoke name=",
    call_ends=("</｜DSML｜invoke>",),
    style=Tagged(">", "<｜DSML｜parameter name=", ">", "", "</｜DSML｜parameter>"),
    reasoning=THINK,
)
GPT_OSS = Format(name="gpt_oss", is_harmony=True)

FORMATS = {
    each.name: each
    for each in (
        PLAIN,
        HERMES,
        QWEN3_CODER,
        LLAMA3,
        MISTRAL,
        DEEPSEEK,
        DEEPSEEK_V32,
        GLM,
        KIMI,
        MINIMAX_M1,
        MINIMAX_M2,
        GRANITE,
        GPT_OSS,
    )
}
"""By the name that `frontend.parser` takes."""
