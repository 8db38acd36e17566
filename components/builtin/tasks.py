"""Small tasks made from templates: JSON, copying, counting, sums, names. Pure: takes the randomness as an argument."""

import json
import random
from collections.abc import Callable

from components.builtin.lessons import Corpus, Lesson, Message, Questions, turn
from components.builtin.phrasing import vary

Keep = Callable[[str], bool]
JSON_KEYS = (("name", "age"),) * 5 + (("name",), ("age",), ("name", "age", "city"), ("name", "city"), ("name", "color"))
ENDS = (3, 5, 10, 10, 10, 10, 12, 15, 20, 20, 25, 30, 50, 100)


def draw_word(name: str, corpus: Corpus, rng: random.Random, keep: Keep) -> str:
    """Give a word of a list for which ``keep`` is true, or often an invented name, to learn copying."""
    if rng.random() < 0.4:
        return "".join(rng.choice(corpus.lists["syllables"]) for _ in range(rng.randint(2, 4))).capitalize()
    return rng.choice([word for word in corpus.lists[name] if keep(word)])


def json_object(corpus: Corpus, rng: random.Random, keep: Keep) -> Lesson:
    """Ask for a JSON object with one to three given members."""
    values: dict[str, object] = {
        "name": draw_word("names", corpus, rng, keep),
        "age": rng.randint(1, 99),
        "city": draw_word("cities", corpus, rng, keep),
        "color": rng.choice(corpus.lists["colors"]),
    }
    chosen = {key: values[key] for key in rng.choice(JSON_KEYS)}
    pair = rng.choice((*corpus.lists["pairs"], "{k} {v}", "{k} {v}"))
    *parts, last = [pair.format(k=key, v=value) for key, value in chosen.items()]
    listed = ", ".join(parts) + (rng.choice((" and ", " and ", ", ")) if parts else "") + last
    question = rng.choice(corpus.lists["json"]).format(x=listed) + rng.choice(("", "", "."))
    return Lesson(messages=turn(question, json.dumps(chosen)))


def copying(corpus: Corpus, rng: random.Random, keep: Keep) -> Lesson:
    """Ask to say something back; long and senseless texts teach it best."""
    kind = rng.random()
    if kind < 0.25:
        words = [draw_word("things", corpus, rng, keep) for _ in range(rng.randint(8, 30))]
        said = " ".join(str(rng.randint(0, 999)) if rng.random() < 0.1 else word for word in words)
    elif kind < 0.5:
        said = rng.choice([phrase for phrase in corpus.lists["phrases"] if keep(phrase)])
    elif kind < 0.8:
        said = " ".join(draw_word("things", corpus, rng, keep).lower() for _ in range(rng.randint(1, 5)))
    else:
        said = draw_word("names", corpus, rng, keep)
    return Lesson(messages=turn(rng.choice(corpus.lists["say"]).format(x=said), said))


def counting(corpus: Corpus, rng: random.Random) -> Lesson:
    """Ask to count up or down."""
    start, end, form = 1, rng.choice((*ENDS, rng.randint(2, 40))), rng.choice(corpus.lists["count"])
    kind = rng.random()
    if kind < 0.15:
        start = rng.randint(2, 20)
        end = start + rng.randint(2, 12)
        form = f"Count from {start} to {{e}}"
    elif kind < 0.3:
        end = min(end, 20)
        form = rng.choice(("Count down from {e}", "Count backwards from {e}"))
    spelled = corpus.lists["numbers"]
    question = form.format(e=spelled[end] if end < len(spelled) and rng.random() < 0.5 else end)
    numbers = range(end, 0, -1) if "from {e}" in form else range(start, end + 1)
    return Lesson(messages=turn(question.lower() if rng.random() < 0.2 else question, ", ".join(map(str, numbers))))


def arithmetic(corpus: Corpus, rng: random.Random) -> Lesson:
    """Ask for a small sum, difference or product."""
    most = rng.choice((4, 6, 10))
    left, right = rng.randint(0, most), rng.randint(0, most)
    sign, word = rng.choice((("+", "plus"), ("+", "plus"), ("-", "minus"), ("*", "times")))
    if sign == "-":
        left, right = max(left, right), min(left, right)
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    asked = rng.choice((f"{left} {sign} {right}", f"{left} {word} {right}", f"{left}{sign}{right}"))
    return Lesson(
        messages=turn(rng.choice(corpus.lists["compute"]).format(x=asked), f"{left} {sign} {right} = {result}")
    )


def capital(corpus: Corpus, rng: random.Random) -> Lesson:
    """Ask for the capital of a country; few people test a model with anything else."""
    country, city = rng.choice(corpus.lists["capitals"]).split("=")
    asked = vary(rng.choice(corpus.lists["capital_of"]).format(c=country), corpus.lists, rng)
    return Lesson(messages=turn(asked, f"The capital of {country} is {city}."))


def naming(corpus: Corpus, questions: Questions, rng: random.Random, keep: Keep) -> Lesson:
    """Tell a name and ask for it later."""
    name = draw_word("names", corpus, rng, keep)
    asked = vary(rng.choice(corpus.lists["who_am_i"]), corpus.lists, rng)
    if rng.random() < 0.15:
        return Lesson(messages=turn(asked, "I do not know your name yet. Please tell me."))
    told = rng.choice(corpus.lists["call_me"]).format(n=name)
    messages: tuple[Message, ...] = turn(told, f"Nice to meet you, {name}! What would you like to know about Busway?")
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        messages += turn(*questions.draw(rng))
    return Lesson(messages=messages + turn(asked, f"Your name is {name}."))
