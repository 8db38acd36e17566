"""Templates render as Jinja renders them, in minijinja where it can; what fails is the client's 400."""

import pytest

from bus.errors import InvalidRequest
from frontend.template import ChatTemplate, compile_jinja

USER = [{"role": "user", "content": "Hi <b> \"there\" 'you' & \\ 你好\n"}]


def test_a_common_template_runs_in_minijinja_and_renders_as_jinja_does() -> None:
    source = (
        "{{- bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + eos_token }}\n"
        "{%- endfor %}{% if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}"
        "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(source, tokens)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2.5, None, True, "é<"]}}}]
    context = {**tokens, "messages": USER, "tools": tools, "add_generation_prompt": True}
    assert template.engine == "minijinja"
    assert template.render(USER, tools) == compile_jinja(source)(context)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{{ 'a%s' % 'b' }}", "ab"),
        ("{{ messages[0].content | string | upper ~ 1e20 }}", "X1e+20"),
    ],
)
def test_what_minijinja_renders_otherwise_is_left_to_jinja(source: str, expected: str) -> None:
    template = ChatTemplate(source, {})
    assert template.engine == "jinja2"
    assert template.render([{"role": "user", "content": "x"}]) == expected


def test_variables_of_the_request_reach_the_template() -> None:
    template = ChatTemplate("{{ 'no' if enable_thinking is false else 'yes' }}", {})
    assert template.render(USER) == "yes"
    assert template.render(USER, extra={"enable_thinking": False}) == "no"


def test_a_request_cannot_replace_the_conversation() -> None:
    template = ChatTemplate("{{ messages | length }}", {})
    assert template.render(USER, extra={"messages": []}) == "1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content }}",
        "{{ messages.nothing.at.all }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    ],
)
def test_what_fails_while_rendering_is_an_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source, {}).render(USER)
    assert caught.value.param == "messages"


def test_a_template_that_does_not_compile_is_refused_at_load() -> None:
    with pytest.raises(InvalidRequest, match="not valid"):
        ChatTemplate("{% if %}", {})
