"""Pure. Chat templates: minijinja where it renders as Jinja does, else Jinja's sandbox."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import minijinja
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bus.errors import InvalidRequest
from frontend.talks import TOOL, TOOL_TALK, TURN_FORMS, Context, Message, as_it_is, context_of, probes

Render = Callable[[Context], str]

_FUEL = 50_000_000
"""Instructions that minijinja may execute in one rendering: a bound for templates that loop."""
_NAME = "chat"


class TemplateRefused(Exception):
    """A template called `raise_exception`: the conversation has a shape that the model does not know."""


def _raise_exception(message: str) -> str:
    raise TemplateRefused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Render JSON as Hugging Face's templates expect it: no HTML escapes, `", "` and `": "` between items."""
    between = (separators[0], separators[1]) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=between, sort_keys=sort_keys)


_FAILURES = (
    TemplateError,
    minijinja.TemplateError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)
"""What rendering raises when a template meets values that it was not written for."""


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; here its body is rendered and nothing more."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_jinja(source: str) -> Render:
    """Compile for Jinja's sandbox; raise `jinja2.TemplateError`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    template = environment.from_string(source)
    return template.render


def compile_minijinja(source: str) -> Render:
    """Compile for minijinja; raise `minijinja.TemplateError`."""
    environment = minijinja.Environment(
        templates={_NAME: source},
        trim_blocks=True,
        lstrip_blocks=True,
        debug=False,
        fuel=_FUEL,
        filters={"tojson": _tojson},
        globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )
    environment.undeclared_variables_in_template(_NAME)
    return lambda context: environment.render_template(_NAME, **context)


class ChatTemplate:
    """Turns a conversation into the prompt text. `special_tokens` are variables such as `bos_token`."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self.knows_developer = "developer" in source
        try:
            jinja = compile_jinja(source)
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template is not valid: {error}") from error
        fast = self._compile_fast(source, jinja)
        self.engine = "minijinja" if fast else "jinja2"
        self._render = fast or jinja
        self._turn = self._turn_that_renders()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Context | None = None,
    ) -> str:
        """Return the prompt, open for the assistant's turn; raise `InvalidRequest` if the template refuses."""
        turns = [self._turn(message) if message.get("tool_calls") else message for message in messages]
        context = context_of(self._special_tokens, extra or {}, turns, tools)
        try:
            return self._render(context)
        except TemplateRefused as error:
            raise InvalidRequest(str(error), param="messages") from error
        except _FAILURES as error:
            raise InvalidRequest(
                f"The model's chat template fails on these messages: {error}", param="messages"
            ) from error

    def _turn_that_renders(self) -> Callable[[Message], Message]:
        """Return the form of a turn with tool calls that this template takes; as it is, if that does not matter.

        Templates differ: some render arguments themselves, some expect JSON text; some fail on a content of None.
        """
        for form in TURN_FORMS:
            context = context_of(self._special_tokens, {}, [form(turn) for turn in TOOL_TALK], [TOOL])
            if _outcome(self._render, context) is not None:
                return form
        return as_it_is

    def _compile_fast(self, source: str, jinja: Render) -> Render | None:
        """Return the template in minijinja if it compiles and renders every probe as Jinja does."""
        try:
            fast = compile_minijinja(source)
        except minijinja.TemplateError:
            return None
        same = all(_outcome(fast, probe) == _outcome(jinja, probe) for probe in probes(self._special_tokens))
        return fast if same else None


def _outcome(render: Render, context: Context) -> str | None:
    """Return what a template renders, None when it fails."""
    try:
        return render(context)
    except (TemplateRefused, *_FAILURES):
        return None
