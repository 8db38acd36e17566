"""Calls of functions of any name: the arguments are in the question. Pure: takes the randomness as an argument."""

import json
import random

from components.builtin.lessons import Corpus, Lesson, Message, Tool
from components.builtin.tasks import Keep, draw_word
from components.builtin.weather import adorn

SCRIPTS = (
    range(0x4E00, 0x9FA0),
    range(0x4E00, 0x9FA0),
    range(0x3042, 0x3094),
    range(0x30A2, 0x30F4),
    range(0xAC00, 0xD7A0),
    range(0x430, 0x450),
    range(0x3B1, 0x3CA),
    range(0x627, 0x64B),
    range(0xE0, 0xFE),
    range(0x1F600, 0x1F640),
)
"""Letters that the corpus has no word of: they can only be copied."""
DESCRIPTIONS = ("Apply it to an input.", "Do it.", "Look it up.", "A function.", "Tell the value.", "Change the world.")


def call(corpus: Corpus, rng: random.Random, keep: Keep) -> Lesson:
    """Ask for a function at hand, by its name or by what it makes; then sometimes tell what it gave."""
    lists = corpus.lists
    noun = rng.choice(lists["nouns"])
    name = rng.choice(
        (f"{rng.choice(lists['verbs'])}_{noun}", f"{rng.choice(lists['verbs'])}_{noun}", noun, invent(corpus, rng))
    )
    arguments, question = draw_call(name, noun, corpus, rng, keep)
    tools = [make_tool(name, arguments, rng)]
    for _ in range(rng.choice((0, 0, 0, 1, 2)) if name in question or noun in name else 0):
        other = f"{rng.choice(lists['verbs'])}_{rng.choice(lists['nouns'])}"
        if other != name:
            tools.insert(rng.randint(0, len(tools)), make_tool(other, {rng.choice(lists["parameters"]): ""}, rng))
    called = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    messages: list[Message] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]},
    ]
    if rng.random() < 0.3:
        result = rng.choice((str(rng.randint(0, 999)), draw_word("things", corpus, rng, keep).lower(), "ok", "done"))
        messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": f"The result is {result}."}]
    return Lesson(messages=tuple(messages), tools=tuple(tools), has_compact_tools=rng.random() < 0.3)


def draw_call(name: str, noun: str, corpus: Corpus, rng: random.Random, keep: Keep) -> tuple[dict[str, object], str]:
    """Give the arguments of a call, and a question that holds them."""
    lists, kind = corpus.lists, rng.random()
    if kind < 0.08:
        return {}, rng.choice(lists["calling_bare"]).format(f=name)
    parameter = rng.choice(lists["parameters"])
    if kind < 0.55:
        value: object = draw_number(rng) if rng.random() < 0.65 else draw_word("things", corpus, rng, keep).lower()
        return {parameter: value}, rng.choice(lists["calling"]).format(f=name, v=value, p=parameter)
    text = draw_text(corpus, rng, keep)
    arguments: dict[str, object] = {parameter: text}
    question = rng.choice(lists["naming_one"]).format(n=noun.replace("_", " "), v=text)
    if rng.random() < 0.2:
        question += f" ({draw_word('names', corpus, rng, keep)} {draw_word('things', corpus, rng, keep)})"
    if rng.random() < 0.4:
        about = draw_word("things", corpus, rng, keep).lower()
        arguments["description"] = f"a {about} {noun.replace('_', ' ')}"
        question += rng.choice((" - ", ", ", ": ")) + str(arguments["description"])
    return arguments, question


def draw_number(rng: random.Random) -> int:
    """Give a small number most of the time."""
    return rng.choice((rng.randint(0, 9), rng.randint(0, 99), rng.randint(0, 9999), -rng.randint(1, 50)))


def draw_text(corpus: Corpus, rng: random.Random, keep: Keep) -> str:
    """Give one to three words, or letters that the corpus does not have."""
    if rng.random() < 0.5:
        parts = [rng.choice(SCRIPTS) for _ in range(rng.choice((1, 1, 2)))]
        return "".join(chr(rng.choice(script)) for script in parts for _ in range(rng.randint(1, 6)))
    return " ".join(draw_word("names", corpus, rng, keep) for _ in range(rng.randint(1, 3)))


def invent(corpus: Corpus, rng: random.Random) -> str:
    """Give a name that means nothing."""
    return "_".join("".join(rng.choices(corpus.lists["syllables"], k=2)) for _ in range(rng.choice((1, 2))))


def make_tool(name: str, arguments: dict[str, object], rng: random.Random) -> Tool:
    """Describe a function that takes these arguments, in the form of the OpenAI API."""
    kinds = {int: "integer", str: "string"}
    properties: dict[str, object] = {key: {"type": kinds[type(value)]} for key, value in arguments.items()}
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if rng.random() < 0.8 and properties:
        parameters["required"] = list(properties)
    function: dict[str, object] = {"name": name, "description": rng.choice(DESCRIPTIONS), "parameters": parameters}
    return {"type": "function", "function": adorn(function, parameters, properties, rng)}
