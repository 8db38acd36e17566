"""The table of attacks names tests that there are, for all of them."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (TESTS / "integration" / "security" / "attacks.md").read_text().splitlines()
    if re.match(r"\| (\d+|-) \|", line)
]


def names_of(path):
    tree = ast.parse((TESTS / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_all_attacks_are_there_in_order():
    assert [number for number, *_ in ROWS if number != "-"] == [str(number) for number in range(1, 26)]


def test_every_attack_is_met_by_a_test_that_there_is():
    for number, attack, _, proof in ROWS:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", proof)
        assert named, (number, attack)
        for path, name in named:
            assert name in names_of(path), (number, path, name)
