"""What a model's text means: reasoning, tool calls, the rest. Everything here is pure but for `random_characters`."""

from frontend.parsing.detect import detect_format
from frontend.parsing.formats import PLAIN, Format
from frontend.parsing.ids import random_characters
from frontend.parsing.parser import parser_for
from frontend.parsing.syntax import CallSyntax, ToolGrammar, tool_grammar

__all__ = [
    "PLAIN",
    "CallSyntax",
    "Format",
    "ToolGrammar",
    "detect_format",
    "parser_for",
    "random_characters",
    "tool_grammar",
]
