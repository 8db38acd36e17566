"""Every mistake on the command line is answered with what was meant."""

from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import structlog

from components.cli.entry import COMMANDS, help_text, main


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what a command sets up for its process: its stderr is gone after the test."""
    settings = structlog.get_config()
    yield
    structlog.configure(**settings)


def test_help_fits_a_screen() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 90
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_that_fits_a_screen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: busway {name}")
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tpa"], "unknown command tpa; did you mean tap?"),
        (["worke"], "unknown command worke; did you mean worker?"),
        (["xyzzy"], "unknown command xyzzy"),
        (["--set", "a=b", "config"], "--set stands before the command"),
        (["--versoin"], "unknown option --versoin; did you mean --version?"),
        (["up", "--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["up", "--worker=3"], "unknown option --worker; did you mean --workers?"),
        (["up", "--port", "many"], "--port: 'many' is no port: a number from 0 to 65535"),
        (["worker", "--metrics-port", "65536"], "--metrics-port: '65536' is no port"),
        (["up", "--engine", "torhc"], "--engine: invalid choice: 'torhc'"),
        (["up", "nonsense"], "unexpected argument 'nonsense'"),
        (["up", "--port"], "--port: expected one argument"),
        (["worker", "--set", "worker.slot=1"], "unknown configuration key 'worker.slot'; did you mean 'slots'?"),
        (["worker", "--set", "worker.slots=-1"], "--set worker.slots=-1: worker.slots: Expected `int` >= 1"),
        (["worker", "--set", "slots"], "write key=value"),
        (["worker", "--config", "nowhere.toml"], "cannot read nowhere.toml"),
        (["run", "components.meter:UsageMetre"], "did you mean UsageMeter?"),
        (["subjects", "--schema", "StepBach"], "no message type 'StepBach'"),
        (["config", "worker.slot"], "no key worker.slot; did you mean worker.slots?"),
        (["replay", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["replay", "t", "--speed", "fast"], "'fast' is no number between"),
        (["replay", "t", "--workers", "0"], "'0' is no number from 1 on"),
        (["replay", "t", "--goal", "1"], "'1' is not two numbers of seconds"),
        (["bench", "--streams", "0"], "--streams: '0' is no number from 1 on"),
        (["bench", "--duration", "nan"], "--duration: 'nan' is no number above 0"),
        (["keys", "add", "x", "--tokens-per-min", "-5"], "'-5' is no number from 1 on"),
        (["tap", "busway."], "did the shell take the `>`?"),
        (["tap", "a", "b"], "one pattern is tapped, not 2"),
        (["tap", "--count", "0"], "--count 0: at least 1"),
        (["tap", "busway..x"], "no subject"),
    ],
)
def test_a_mistake_is_one_line_and_a_way_on(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: ")
    assert says in first
    assert second.startswith("  try: busway")


@pytest.mark.parametrize("words", [["run", "foo"], ["replay", "/nowhere"], ["subjects", "--schema", "Nobody"]])
def test_a_wrong_argument_is_answered_with_the_help_of_its_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(f"try: busway {words[0]} --help\n")


@pytest.mark.parametrize(("data", "says"), [(b"", "stdin is empty"), (b" \n", "stdin is empty"), (b"\xff", "no text")])
def test_what_says_nothing_is_not_asked(
    data: bytes, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(data)))
    assert main(["explain", "-", "--url", "http://127.0.0.1:9"]) == 2
    assert says in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--set", "state_dir=/dev/null/x"]) == 1
    assert "cannot keep anything in /dev/null/x: Not a directory\n  try: --set state_dir=" in capsys.readouterr().err


def test_nothing_runs_is_told_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["chat", "hello", "--url", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert main(["bench"]) == 1
    assert "busway up --engine mock" in capsys.readouterr().err
    assert main(["down"]) == 0
    assert "nothing runs" in capsys.readouterr().out
