"""Batches by the official client: every line ends once, whoever is killed, and as the oracle has it."""

import base64
import json
import os
import signal
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from components.engines.mock.oracle import mock_token, mock_vector, prompt_seed

ROOT = Path(__file__).parents[2]
NUM_LINES = 60
NUM_TOKENS = 30
ENDED = ("completed", "failed", "cancelled", "expired")


class System:
    """What `busway up` started."""

    def __init__(self, shell: Any) -> None:
        self._state = shell.directory / ".busway" / "up.json"
        self.client = openai.OpenAI(base_url=f"{self.read()['url']}/v1", api_key="x", max_retries=0, timeout=120.0)

    def read(self) -> Any:
        return json.loads(self._state.read_text())

    def kill(self, role: str) -> None:
        os.kill(next(each["pid"] for each in self.read()["processes"] if each["role"] == role), signal.SIGKILL)

    def upload(self, lines: list[dict[str, Any]] | bytes, name: str = "lines.jsonl") -> str:
        data = lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return self.client.files.create(file=(name, data), purpose="batch").id

    def begin(self, file: str, endpoint: Any = "/v1/completions") -> str:
        return self.client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h").id

    def look(self, batch: str) -> Any:
        """Return a batch, None while nobody answers."""
        try:
            return self.client.batches.retrieve(batch)
        except openai.APIError:
            return None

    def read_lines(self, file: str | None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.client.files.content(file).text.splitlines()] if file else []


@pytest.fixture(scope="module")
def system(shared_shell: Any, wait_for: Callable[..., float]) -> Iterator[System]:
    words = ["--engine", "mock", "--set", "worker.served_name=mock", "--set", "mock.step_base_s=0.01"]
    up = shared_shell.start("up", "--port", "0", "--set", "up.nats_port=0", *words)
    wait_for(lambda: "ready in" in shared_shell.output() or up.poll() is not None, explain=shared_shell.output)
    assert up.poll() is None, shared_shell.output()
    system = System(shared_shell)
    with system.client:
        yield system


def line(number: int, **body: Any) -> dict[str, Any]:
    given = {"model": "mock", "prompt": [400 + number, 401], "max_tokens": NUM_TOKENS, "ignore_eos": True} | body
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": given}


def expected(number: int) -> str:
    tokenizer = Tokenizer.from_file(str(ROOT / "components/builtin/model/tokenizer.json"))
    seed = prompt_seed([400 + number, 401])
    tokens = [mock_token(seed, offset, tokenizer.get_vocab_size()) for offset in range(NUM_TOKENS)]
    text: str = tokenizer.decode(tokens)
    return text


def test_every_line_ends_once_whoever_is_killed(system: System, wait_for: Callable[..., float]) -> None:
    lines = [line(number) for number in range(NUM_LINES)]
    lines[7] = line(7, model="nobody-has-this")
    batch = system.begin(system.upload(lines, "../../etc/passwd"))
    for role, threshold in (("worker", 2), ("frontend", 10), ("nats", 20)):

        def is_there(threshold: int = threshold) -> bool:
            shown = system.look(batch)
            return shown is not None and shown.request_counts.completed >= threshold

        wait_for(is_there)
        assert system.look(batch).status == "in_progress"
        system.kill(role)
    wait_for(lambda: (shown := system.look(batch)) is not None and shown.status in ENDED)
    shown = system.client.batches.retrieve(batch)
    assert (shown.status, shown.request_counts.total) == ("completed", NUM_LINES)
    output, errors = system.read_lines(shown.output_file_id), system.read_lines(shown.error_file_id)
    assert [each["custom_id"] for each in output] == [f"line-{n}" for n in range(NUM_LINES) if n != 7]
    texts = {each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in output}
    assert texts == {f"line-{n}": expected(n) for n in range(NUM_LINES) if n != 7}
    assert [(each["custom_id"], each["response"]["status_code"]) for each in errors] == [("line-7", 404)]
    told = [each["response"]["body"]["usage"] for each in output]
    assert shown.usage.input_tokens == sum(each["prompt_tokens"] for each in told)
    assert shown.usage.output_tokens == sum(each["completion_tokens"] for each in told)


def test_a_cancelled_batch_stops_before_its_lines_are_done_and_accounts_for_every_line(
    system: System, wait_for: Callable[..., float]
) -> None:
    batch = system.begin(system.upload([line(number, max_tokens=2000) for number in range(NUM_LINES)]))
    wait_for(lambda: system.client.batches.retrieve(batch).status == "in_progress")
    with ThreadPoolExecutor(2) as pool:
        shown = list(pool.map(lambda _: system.client.batches.cancel(batch), range(2)))
    assert {each.status for each in shown} <= {"cancelling", "cancelled"}
    wait_for(lambda: system.client.batches.retrieve(batch).status == "cancelled")
    ended = system.client.batches.retrieve(batch)
    assert ended.request_counts.completed < NUM_LINES
    lines = system.read_lines(ended.output_file_id) + system.read_lines(ended.error_file_id)
    assert sorted(each["custom_id"] for each in lines) == sorted(f"line-{number}" for number in range(NUM_LINES))
    assert system.client.batches.cancel(batch).status == "cancelled"
    assert batch in [each.id for each in system.client.batches.list(limit=5)]


def test_a_file_with_broken_lines_is_refused_line_by_line(system: System, wait_for: Callable[..., float]) -> None:
    good = json.dumps(line(0)).encode()
    hostile = [b"{", good, good, b"[1]", good.replace(b"/v1/completions", b"/v1/chat"), b"x" * 2**21, b"\xff\xfe"]
    batch = system.begin(system.upload(b"\n".join(hostile)))
    wait_for(lambda: system.client.batches.retrieve(batch).status == "failed")
    errors = system.client.batches.retrieve(batch).errors
    assert errors is not None
    codes = {(each.line, each.code) for each in errors.data or ()}
    assert codes >= {
        (1, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_request"),
        (5, "invalid_url"),
        (6, "line_too_large"),
    }
    assert {number for number, _ in codes} == {1, 3, 4, 5, 6, 7}
    empty = system.begin(system.upload(b"\n\n"))
    wait_for(lambda: system.client.batches.retrieve(empty).status == "failed")


def test_files_are_kept_as_they_are_until_deleted(system: System) -> None:
    content = os.urandom(1_300_000)
    file = system.upload(content, "a/../b\r\n\\c.jsonl")
    shown = system.client.files.retrieve(file)
    assert (shown.bytes, shown.purpose) == (len(content), "batch")
    assert "/" not in shown.filename
    assert system.client.files.content(file).content == content
    assert file in [each.id for each in system.client.files.list(purpose="batch")]
    assert system.client.files.delete(file).deleted
    with pytest.raises(openai.NotFoundError):
        system.client.files.retrieve(file)
    with pytest.raises(openai.BadRequestError):
        system.begin(file)
    with pytest.raises(openai.BadRequestError):
        system.client.files.create(file=b"x", purpose="assistants")


def test_embeddings_in_both_formats_are_the_oracles(system: System) -> None:
    prompts = [[400, 401], [402]]
    wanted = [array("f", mock_vector(prompt)).tolist() for prompt in prompts]
    for encoding in ("float", "base64"):
        made = system.client.embeddings.create(model="mock", input=prompts, encoding_format=encoding)  # type: ignore[call-overload]
        found = [each.embedding for each in made.data]
        if encoding == "base64":
            found = [array("f", base64.b64decode(each)).tolist() for each in found]
        assert found == wanted
        assert made.usage.prompt_tokens == 3
    assert len(system.client.embeddings.create(model="mock", input="a bus", dimensions=8).data[0].embedding) == 8
    with pytest.raises(openai.BadRequestError):
        system.client.embeddings.create(model="mock", input=[])
