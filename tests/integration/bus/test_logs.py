"""Log lines: JSON away from a terminal, filtered by level, the same for libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import logging, sys, structlog
from bus.config import LogConfig
from bus.logs import set_up_logs
log = structlog.get_logger()
set_up_logs(LogConfig(format=sys.argv[1], level=sys.argv[2]), "worker")
log.debug("engine.stepped")
log.info("request.finished", tokens_out=64, odd=object(), text="two\\nlines")
logging.getLogger("library").info("not shown")
logging.getLogger("library").warning("shown %s", "once")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("request.failed")
"""


def lines(log_format: str, level: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, log_format, level]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_lines() -> None:
    found = [json.loads(line) for line in lines("auto", "info")]
    assert [record["event"] for record in found] == ["request.finished", "shown once", "request.failed"]
    assert {record["process"] for record in found} == {"worker"}
    assert (found[0]["tokens_out"], found[0]["level"], found[0]["text"]) == (64, "info", "two\nlines")
    assert found[0]["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in found[2]["exception"]


@pytest.mark.parametrize(("level", "first"), [("debug", "engine.stepped"), ("error", "request.failed")])
def test_levels(level: str, first: str) -> None:
    assert json.loads(lines("json", level)[0])["event"] == first


def test_console_lines_are_for_people() -> None:
    text = "\n".join(lines("console", "info"))
    assert "request.finished" in text
    assert "tokens_out=64" in text
    assert "Traceback" in text
