"""Pure. Which family a model belongs to, by the markers that its chat template writes."""

import msgspec

from bus.config import ParserName
from frontend.parsing import formats
from frontend.parsing.formats import FORMATS, PLAIN, THINK, THINK_BRACKETS, THOUGHT_PROCESS, Format

_SIGNS: tuple[tuple[str, Format], ...] = (
    ("<|channel|>", formats.GPT_OSS),
    ("｜DSML｜", formats.DEEPSEEK_V32),
    ("<｜tool▁call▁begin｜>", formats.DEEPSEEK),
    ("<|tool_calls_section_begin|>", formats.KIMI),
    ("<minimax:tool_call>", formats.MINIMAX_M2),
    ("<arg_key>", formats.GLM),
    ("<function=", formats.QWEN3_CODER),
    ("[TOOL_CALLS]", formats.MISTRAL),
    ("<|tool_call|>", formats.GRANITE),
    ("<tool_calls>", formats.MINIMAX_M1),
    ("<tool_call>", formats.HERMES),
    ("<|python_tag|>", formats.LLAMA3),
)
"""Most telling first: `<tool_call>` alone is the sign of the family that many others imitate."""
_LLAMA3_SIGNS = ("<|start_header_id|>", '"parameters"')

_REASONINGS = (THINK, THINK_BRACKETS, THOUGHT_PROCESS)


def detect_format(chat_template: str | None, parser: ParserName = "auto") -> Format:
    """Return how the model writes calls and reasoning.

    `parser` is the family's name if the configuration names one, `auto` to go by the template, `none` for plain text.
    A template without any sign gets hermes: a grammar can force its calls, and most models that know any know these.
    """
    template = chat_template or ""
    if parser == "auto":
        by_shape = formats.LLAMA3 if all(sign in template for sign in _LLAMA3_SIGNS) else formats.HERMES
        found = next((format for sign, format in _SIGNS if sign in template), by_shape)
    else:
        found = FORMATS[parser]
        if found is PLAIN:
            return PLAIN
    if found.is_harmony or found.reasoning is not None:
        return found
    reasoning = next((each for each in _REASONINGS if each.end in template), None)
    return msgspec.structs.replace(found, reasoning=reasoning)
