"""Read the hand-written corpus. Pure: text in, frozen values out."""

import re
from dataclasses import dataclass
from zlib import crc32

Lists = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """One answer, with the terms it defines and the whole questions it answers."""

    terms: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


def parse_entries(text: str) -> list[Entry]:
    """Read entries: lines ``T: term | +plural`` and ``Q: question``, then ``A: answer`` of one or several lines.

    Raises ValueError when an answer has no question or a question no answer.
    """
    entries: list[Entry] = []
    for block in re.split(r"\n\n(?=[TQ]: )", strip_comments(text)):
        head, found, answer = block.partition("\nA: ")
        lines = head.splitlines()
        terms = [term.strip() for line in lines if line.startswith("T: ") for term in line[3:].split("|")]
        questions = [line[3:].strip() for line in lines if line.startswith("Q: ")]
        if not found or not lines or len(questions) + sum(line.startswith("T: ") for line in lines) != len(lines):
            raise ValueError(f"not an entry: {block!r}")
        entries.append(Entry(tuple(terms), tuple(questions), answer.strip()))
    return entries


def parse_lists(text: str) -> Lists:
    """Read lines ``name: items``; items are divided by ``|`` when the line has one, else by spaces."""
    lists: Lists = {}
    for line in strip_comments(text).splitlines():
        name, _, items = line.partition(": ")
        lists[name] = tuple(dict.fromkeys(items.split("|") if "|" in items else items.split()))
    return lists


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read lines ``question of the corpus => the same in other words``."""
    pairs = [line.split(" => ") for line in strip_comments(text).splitlines()]
    return tuple((known, asked) for known, asked in pairs)


def strip_comments(text: str) -> str:
    """Drop lines that begin with ``# `` and the empty lines around the text."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("# ")).strip()


def normal(question: str) -> str:
    """Give the form in which two questions are compared: lower case, letters and digits only."""
    return " ".join(re.findall(r"[a-z0-9]+", question.lower()))


def is_held_out(question: str) -> bool:
    """Say whether a question or word is for the evaluation only: about one in ten, by its content."""
    return crc32(normal(question).encode()) % 10 == 0
