"""Golden answers of each family, written in the style of its template."""

from typing import NamedTuple

import msgspec

from frontend.openai.tools import FunctionSpec, Tool

TOOLS = [
    Tool(
        function=FunctionSpec(
            name="get_weather",
            parameters=msgspec.Raw(
                b'{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"},'
                b'"hourly":{"type":"boolean"},"near":{"type":"array","items":{"type":"string"}},'
                b'"unit":{"anyOf":[{"$ref":"#/$defs/Unit"},{"type":"null"}]}},'
                b'"$defs":{"Unit":{"enum":["C","F"]}}}'
            ),
        )
    ),
    Tool(function=FunctionSpec(name="now")),
]


class Golden(NamedTuple):
    """An answer, and what it means. `prompt` is the end of the prompt before it."""

    format: str
    answer: str
    calls: tuple[tuple[str, object], ...]
    text: str = ""
    reasoning: str = ""
    prompt: str = ""


KOELN = ("get_weather", {"city": "Köln", "days": 2})
NOW = ("now", {})

GOLDEN = [
    Golden(
        "hermes",
        '<think>\nSun?\n</think>\n\nLet me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", '
        '"days": 2}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        (KOELN, NOW),
        "Let me look.",
        "Sun?",
    ),
    Golden(
        "hermes",
        '<tool_call>{"arguments": {"a": "</tool_call>{\\"}"}, "name": "now"}</tool_call> Done.\n',
        (("now", {"a": '</tool_call>{"}'}),),
        "Done.\n",
    ),
    Golden(
        "hermes",
        '<tool_call>\n{"type": "function", "function": {"name": "now", "arguments": "{\\"a\\": 1}"}}\n',
        (("now", {"a": 1}),),
    ),
    Golden(
        "hermes",
        '<tool_call>{"name": "now", "arguments": {"code": "a\n\tb"}}</tool_call>',
        (("now", {"code": "a\n\tb"}),),
    ),
    Golden(
        "hermes",
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        (),
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    ),
    Golden(
        "hermes",
        "I think <tool_call> tags are fine, <think> too.",
        (),
        "I think <tool_call> tags are fine, <think> too.",
    ),
    Golden(
        "hermes",
        'hm <tool_call>{"name": "now"}</tool_call>\n</think>\n\nYes.',
        (),
        "Yes.",
        'hm <tool_call>{"name": "now"}</tool_call>',
        "<|im_start|>assistant\n<think>\n",
    ),
    Golden("hermes", "Yes <think>.", (), "Yes <think>.", "", "<think>\n\n</think>\n\n"),
    Golden(
        "qwen3_coder",
        "Sure.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n"
        '</parameter>\n<parameter=hourly>\nTrue\n</parameter>\n<parameter=near>\n["Bonn"]\n</parameter>\n'
        "<parameter=unit>\nnull\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n"
        "</tool_call>",
        (("get_weather", {"city": "Köln", "days": 2, "hourly": True, "near": ["Bonn"], "unit": None}), NOW),
        "Sure.",
    ),
    Golden(
        "qwen3_coder",
        '<function=get_weather>\n<parameter=city>\n\na "b"\n\\ <p>\n\n</parameter>\n'
        "<parameter=days>\nfew\n</parameter>\n"
        "<parameter=unit>\nF\n</parameter>\n</function>",
        (("get_weather", {"city": '\na "b"\n\\ <p>\n', "days": "few", "unit": "F"}),),
    ),
    Golden("qwen3_coder", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', (NOW,)),
    Golden(
        "llama3",
        '{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}; {"name": "now", "parameters": {}}',
        (KOELN, NOW),
    ),
    Golden("llama3", '<|python_tag|>{"type": "function", "name": "now", "parameters": {}}', (NOW,)),
    Golden("llama3", ' {"name": "Bob", "age": 3}', (), ' {"name": "Bob", "age": 3}'),
    Golden("llama3", '{"answer": 1}', (), '{"answer": 1}'),
    Golden("llama3", '<|python_tag|>now.call(x={"a": 1})', (), '<|python_tag|>now.call(x={"a": 1})'),
    Golden(
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}, '
        '{"name": "now", "arguments": {}, "id": "abcdefghi"}]',
        (KOELN, NOW),
    ),
    Golden(
        "mistral",
        '[THINK]So.[/THINK]Well.[TOOL_CALLS]get_weather[ARGS]{"city": "Köln", "days": 2}'
        "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}",
        (KOELN, NOW),
        "Well.",
        "So.",
    ),
    Golden("mistral", "[TOOL_CALLS]now{}", (NOW,)),
    Golden(
        "deepseek",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Köln", "days": 2}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n"
        "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (KOELN, NOW),
        "Let me see.",
    ),
    Golden(
        "deepseek",
        "Sun.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Köln", "days": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        (KOELN, NOW),
        reasoning="Sun.",
        prompt="<｜Assistant｜><think>",
    ),
    Golden(
        "deepseek_v32",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
        'string="true">Köln</｜DSML｜parameter>\n<｜DSML｜parameter '
        'name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        (KOELN, NOW),
    ),
    Golden(
        "glm",
        "\n<think>Sun?</think>\nOne moment.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        (KOELN, NOW),
        "One moment.",
        "Sun?",
    ),
    Golden(
        "glm",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value> Köln\n</arg_value></tool_call>",
        (("get_weather", {"city": " Köln\n"}),),
    ),
    Golden(
        "kimi",
        "<think>Sun?</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Köln", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.now:1'
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        (KOELN, NOW),
        "I look.",
        "Sun?",
    ),
    Golden(
        "minimax_m1",
        '<think>\nSun?\n</think>\n<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Köln", '
        '"days": 2}}\n{"name": "now", "arguments": {}}\n</tool_calls>',
        (KOELN, NOW),
        "",
        "Sun?",
    ),
    Golden(
        "minimax_m2",
        'Sun?\n</think>\n\nI look.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Köln'
        '</parameter>\n<parameter name="days">2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n'
        "</minimax:tool_call>",
        (KOELN, NOW),
        "I look.",
        "Sun?",
        "]~b]ai\n<think>\n",
    ),
    Golden(
        "granite",
        'Here is my thought process: Sun? Here is my response: I look. <|tool_call|>[{"name": '
        '"get_weather", "arguments": {"city": "Köln", "days": 2}}, {"name": "now", "arguments": {}}]',
        (KOELN, NOW),
        "I look.",
        "Sun?",
    ),
    Golden(
        "gpt_oss",
        "<|channel|>analysis<|message|>Sun?<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Köln", "days": 2}<|call|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}',
        (KOELN, NOW),
        "I look.",
        "Sun?",
        "<|start|>assistant",
    ),
    Golden(
        "gpt_oss",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>It is 1 < 2.",
        (),
        "It is 1 < 2.",
        "a",
        "<|start|>assistant",
    ),
    Golden("gpt_oss", '{"a": 1}', (), '{"a": 1}', "", "<|start|>assistant"),
    Golden("gpt_oss", "Yes.", (), "Yes.", "", "<|start|>assistant<|channel|>final<|message|>"),
]
