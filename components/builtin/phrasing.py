"""Ask the same thing in many ways. Pure: takes the source of randomness as an argument."""

import random

from components.builtin.reading import Entry, Lists

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def questions_of(entry: Entry, forms: Lists) -> list[str]:
    """Give every question that the entry answers: the whole ones, and each term in each form."""
    asked = list(entry.questions)
    for term in entry.terms:
        if term.startswith("+"):
            asked += [form.format(t=term[1:]) for form in forms["plural"]]
        else:
            asked += [form.format(t=term, b=without_article(term)) for form in forms["singular"]]
    return list(dict.fromkeys(question[:1].upper() + question[1:] for question in asked))


def without_article(term: str) -> str:
    """Drop a leading article: ``a KV block`` becomes ``KV block``."""
    first, _, rest = term.partition(" ")
    return rest if first in ("a", "an", "the") else term


def vary(question: str, forms: Lists, rng: random.Random) -> str:
    """Ask as people type: other case, missing or doubled marks, a greeting before, a slip of the finger."""
    is_long = len(question.split()) > 2
    text = reword(question, forms, rng) if is_long else question
    if is_long and rng.random() < 0.12:
        text = rng.choice(forms["openings"]) + (text if rng.random() < 0.5 else text[:1].lower() + text[1:])
    if rng.random() < 0.3:
        text = text.rstrip("?.!")
    elif rng.random() < 0.08:
        text = text.rstrip("?.!") + rng.choice(("??", "!", "?!", " ?", "...", ".", "?"))
    if is_long and rng.random() < 0.06:
        text += rng.choice(forms["closings"])
    if rng.random() < 0.15:
        text = slip(text, rng)
    if rng.random() < 0.25:
        return text.lower()
    return text.upper() if rng.random() < 0.02 else text


def reword(text: str, forms: Lists, rng: random.Random) -> str:
    """Swap a phrase for another, lose a small word or put a word too much, each now and then."""
    swaps = [swap for swap in forms["swaps"] if swap.split("=")[0] in text]
    if swaps and rng.random() < 0.3:
        said, *others = rng.choice(swaps).split("=")
        text = text.replace(said, rng.choice(others), 1)
    words = text.split()
    small = [at for at, word in enumerate(words) if word in forms["small_words"]]
    if small and rng.random() < 0.08:
        del words[rng.choice(small)]
    elif rng.random() < 0.08:
        words.insert(rng.randint(1, len(words) - 1), rng.choice(forms["fillers"]))
    return " ".join(words)


def slip(text: str, rng: random.Random) -> str:
    """Drop, double, swap or replace one letter inside a word of at least five."""
    words = text.split(" ")
    long_words = [at for at, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long_words:
        return text
    at = rng.choice(long_words)
    word = words[at]
    spot = rng.randrange(1, len(word) - 1)
    before, letter, after = word[:spot], word[spot], word[spot + 1 :]
    slips = (after, letter * 2 + after, after[0] + letter + after[1:], rng.choice(LETTERS) + after)
    words[at] = before + rng.choice(slips)
    return " ".join(words)
