"""The tool task: ask for the weather, call a tool, tell its answer. Pure: takes the randomness as an argument."""

import json
import random
from typing import cast

from components.builtin.lessons import Corpus, Lesson, Message, Questions, Tool, turn
from components.builtin.tasks import Keep, draw_word

NO_WEATHER = "I cannot see the weather. Give me a weather tool in the request, and ask for the weather in a city."
SCHEMAS = ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema")
NAMES = ("get_weather",) * 7 + ("get_current_weather", "weather", "get_temperature")
ARGUMENTS = ("city",) * 6 + ("location",) * 3 + ("place",)
STATES = ("CA", "NY", "TX", "WA", "MA", "IL", "FL")
OTHER_TOOLS = (
    ("get_time", "Get the time", "timezone"),
    ("send_email", "Send an email", "to"),
    ("search", "Search the web", "query"),
    ("calculator", "Compute an expression", "expression"),
    ("get_stock_price", "Get a stock price", "symbol"),
)


def weather(corpus: Corpus, questions: Questions, rng: random.Random, keep: Keep) -> Lesson:
    """Ask for the weather with tools at hand; sometimes the right tool is missing, or is not needed."""
    city = draw_city(corpus, rng, keep)
    name, argument = rng.choice(NAMES), rng.choice(ARGUMENTS)
    tools = [make_tool(*other, rng) for other in rng.sample(OTHER_TOOLS, rng.choice((0, 0, 0, 1, 2)))]
    question = rng.choice(corpus.lists["weather"]).format(c=city)
    question = question.rstrip("?.") if rng.random() < 0.25 else question
    kind = rng.random()
    if kind < 0.1:
        return Lesson(messages=turn(question, NO_WEATHER), tools=tuple(tools))
    tools.insert(rng.randint(0, len(tools)), make_tool(name, rng.choice(corpus.lists["about"]), argument, rng))
    is_compact = rng.random() < 0.3
    if kind < 0.28:
        return Lesson(messages=turn(*questions.draw(rng)), tools=tuple(tools), has_compact_tools=is_compact)
    called = {"name": name, "arguments": json.dumps({argument: city}, ensure_ascii=False)}
    messages: list[Message] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]},
    ]
    if kind < 0.75:
        response, sentence = draw_report(city, corpus, rng)
        messages += [{"role": "tool", "content": response}, {"role": "assistant", "content": sentence}]
    return Lesson(messages=tuple(messages), tools=tuple(tools), has_compact_tools=is_compact)


def draw_city(corpus: Corpus, rng: random.Random, keep: Keep) -> str:
    """Give a city, sometimes of two words or with its country."""
    if rng.random() < 0.2:
        city = rng.choice(corpus.lists["two_word_cities"])
        return f"{city}, {rng.choice(STATES)}" if rng.random() < 0.3 else city
    city = draw_word("cities", corpus, rng, keep)
    return f"{city}, {rng.choice(corpus.lists['countries'])}" if rng.random() < 0.06 else city


def make_tool(name: str, description: str, argument: str, rng: random.Random) -> Tool:
    """Describe a function of one string argument, in the form of the OpenAI API."""
    value: dict[str, object] = {"type": "string"}
    if rng.random() < 0.3:
        value["description"] = rng.choice(("The city", "City name", "The name of the city", f"The {argument}"))
    properties: dict[str, object] = {argument: value}
    if rng.random() < 0.1:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = [argument]
    function: dict[str, object] = {"name": name, "description": description, "parameters": parameters}
    if rng.random() < 0.2:
        del function["description"]
    return {"type": "function", "function": adorn(function, parameters, properties, rng)}


def adorn(
    function: dict[str, object], parameters: dict[str, object], properties: dict[str, object], rng: random.Random
) -> dict[str, object]:
    """Add what libraries write into schemas, now and then; return the function."""
    if rng.random() < 0.3:
        parameters["additionalProperties"] = False
    if rng.random() < 0.2:
        parameters["$schema"] = rng.choice(SCHEMAS)
    if rng.random() < 0.25:
        for name, value in list(properties.items()):
            properties[name] = {"title": name.replace("_", " ").title(), **cast("dict[str, object]", value)}
        if rng.random() < 0.5:
            parameters["title"] = f"{function['name']}_args"
    if rng.random() < 0.2:
        function["strict"] = rng.random() < 0.7
    items = list(parameters.items())
    if rng.random() < 0.3:
        rng.shuffle(items)
    function["parameters"] = dict(items)
    return function


def draw_report(city: str, corpus: Corpus, rng: random.Random) -> tuple[str, str]:
    """Give what a weather tool answers, and the sentence that tells it."""
    sky, degrees = rng.choice(corpus.lists["conditions"]), rng.randint(-15, 40)
    kind = rng.random()
    if kind < 0.15:
        text = rng.choice(corpus.lists["reports"]).format(k=sky, d=degrees)
        return text, f"The weather in {city}: {text}"
    heat_key, sky_key = rng.choice(corpus.lists["heat_keys"]), rng.choice(corpus.lists["sky_keys"])
    report: dict[str, object] = {heat_key: degrees, sky_key: sky}
    sentence = f"The weather in {city} is {sky}, with {degrees} degrees."
    if kind < 0.3:
        report, sentence = {heat_key: degrees}, f"It is {degrees} degrees in {city}."
    elif kind < 0.4:
        report, sentence = {sky_key: sky}, f"The weather in {city} is {sky}."
    elif kind < 0.6:
        report = {sky_key: sky, heat_key: degrees}
    if rng.random() < 0.3:
        report = {rng.choice(("city", "location")): city, **report}
    if rng.random() < 0.15:
        report["unit"] = "celsius"
    return json.dumps(report, separators=(",", ":") if rng.random() < 0.2 else None), sentence
