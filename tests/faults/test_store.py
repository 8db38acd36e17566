"""The disk of the broker is full, rots, or is slow."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest
from msgspec.structs import replace

from components.chaos.history import Question
from tests.faults.system import STEP_S, System, make_questions

pytestmark = pytest.mark.anyio
NUM_LINES = 40
ENDED = ("completed", "failed", "expired", "cancelled")
SYNC_S = 0.5


@pytest.fixture
def small_disk(tmp_path: Path, systems: list[System]) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root: {done.stderr.strip()}")
    yield folder
    for system in systems:
        system.close()
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_store_stops_only_what_needs_it(
    small_disk: Path, open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    (small_disk / "store").mkdir()
    (small_disk.parent / "nats").mkdir(mode=0o700)
    (small_disk.parent / "nats" / "store").symlink_to(small_disk / "store")
    system = await open_system()
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        refusal = 200
        for _ in range(32):
            if refusal == 200:
                refusal = await anyio.to_thread.run_sync(upload, system, b'{"a": 1}\n' * 2**17)
        await anyio.sleep(3.0)
    gap_s = max(a.longest_gap_s for a in load.answers if a.ended_at > at)
    system.kill("nats")
    for file in (small_disk / "store").rglob("*_PIECES/**/*.blk"):
        file.unlink()
    await system.start_nats()
    again = 0
    with anyio.move_on_after(10):
        while again != 200:
            again = await anyio.to_thread.run_sync(upload, system, b'{"a": 1}\n')
    measured("25", f"gap {1e3 * gap_s:.0f} ms; an upload gets {refusal}, with room again {again}")
    assert refusal in (500, 503)
    assert gap_s < 0.25 + STEP_S + stalls.slack_s
    assert again == 200


def upload(system: System, data: bytes) -> int:
    """Upload a file; return the status."""
    boundary = "busway"
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'.encode(),
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'.encode(),
        data,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    url = f"http://127.0.0.1:{system.target().port}/v1/files"
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b"".join(parts), headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def begin_batch(client: openai.AsyncOpenAI, questions: list[Question]) -> str:
    """Begin a batch that asks these questions; return its id."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "mock", "prompt": each.prompt, "max_tokens": each.max_tokens, "ignore_eos": True},
        }
        for number, each in enumerate(questions)
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = await client.files.create(file=("lines.jsonl", data), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    return batch.id


async def wait_ended(client: openai.AsyncOpenAI, batch: str, within_s: float) -> Any:
    """Return a batch once it has ended."""
    with anyio.fail_after(within_s):
        while True:
            try:
                found = await client.batches.retrieve(batch)
            except openai.APIStatusError:
                found = None
            if found is not None and found.status in ENDED:
                return found
            await anyio.sleep(0.1)


async def read_texts(client: openai.AsyncOpenAI, batch: Any) -> list[str]:
    """Return what the lines of a batch came to, in their order."""
    content = await client.files.content(batch.output_file_id)
    return [json.loads(line)["response"]["body"]["choices"][0]["text"] for line in content.text.splitlines()]


def flip_a_bit(store: Path, stream: str, part: float) -> None:
    """Change one bit of what a stream has on disk, so far into it."""
    (file,) = store.rglob(f"{stream}/msgs/*.blk")
    data = bytearray(file.read_bytes())
    data[int(part * len(data))] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("stream", ["BUSWAY_JOBS", "KV_BUSWAY_RESULTS"])
async def test_a_flipped_bit_costs_no_line_of_a_batch(
    stream: str, open_system: Any, under_load: Any, measured: Any
) -> None:
    """The server leaves out what is damaged, and all behind it; whoever carried the batches on dies as well."""
    system: System = await open_system(workers=2, settings={"worker.slots": 4, "mock.max_running": 4})
    asked = [await make_questions(system.target(), NUM_LINES, max_tokens=20, seed=seed) for seed in range(3)]
    url = f"http://127.0.0.1:{system.target().port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=2, timeout=10.0) as client:
        batches = [await begin_batch(client, questions) for questions in asked]
        with anyio.fail_after(20):
            while not (await client.batches.retrieve(batches[0])).request_counts.completed:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        system.kill("nats", "frontend-0")
        flip_a_bit(system.folder / "nats" / "store", stream, 0.4)
        await system.start_nats()
        system.start("frontend-0")
        await system.wait_ready(2)
        at = time.monotonic()
        async with under_load(system, streams=4, may_refuse=True):
            ended = [await wait_ended(client, batch, 90.0) for batch in batches]
        took_s = time.monotonic() - at
        texts = [await read_texts(client, batch) for batch in ended]
    num_lost = len(system.events("frontend-0", "batch.job_lost"))
    if stream == "BUSWAY_JOBS":
        measured("25b", f"{num_lost} of 3 jobs lost, found and done; all three batches end {took_s:.0f} s later")
    assert [batch.status for batch in ended] == ["completed"] * 3
    assert texts == [[each.expected for each in questions] for questions in asked]
    assert num_lost or stream != "BUSWAY_JOBS"


SLOW_SYNC = (
    *("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "signal=none"),
    *("-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:delay_enter={round(1e6 * SYNC_S)}"),
)
"""Runs a command each of whose calls of fsync takes that long."""


@pytest.fixture
def slow_sync() -> Sequence[str]:
    """The command before a command that makes its disk slow."""
    try:
        done = subprocess.run([*SLOW_SYNC, "true"], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("making fsync slow takes strace")
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    return SLOW_SYNC


def store_before_answering(config: Path) -> None:
    """Let the broker acknowledge nothing that is not on its disk."""
    config.write_text(config.read_text().replace("jetstream {", "jetstream {\n  sync_interval: always", 1))


async def test_a_slow_disk_slows_down_only_what_is_stored(
    slow_sync: Sequence[str], open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system: System = await open_system()
    system.kill("nats")
    store_before_answering(Path(system.server.config_path))
    fast = system.server
    system.server = replace(fast, command=[*slow_sync, *fast.command])
    await system.start_nats()
    questions = await make_questions(system.target(), 8, max_tokens=20, seed=3)
    url = f"http://127.0.0.1:{system.target().port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=5, timeout=30.0) as client:
        async with under_load(system, may_refuse=True) as load:
            await anyio.sleep(3.0)
            at = time.monotonic()
            file = await client.files.create(file=("a.jsonl", b'{"a": 1}\n' * 2**17), purpose="batch")
            uploaded_s = time.monotonic() - at
            ended = await wait_ended(client, await begin_batch(client, questions), 90.0)
            batch_s = time.monotonic() - at - uploaded_s
        texts = await read_texts(client, ended)
        system.kill("nats")
        system.server = fast
        await system.start_nats()
        kept = await client.files.content(file.id)
    gap_s = max(a.longest_gap_s for a in load.answers if a.started_at > at)
    num_lost = len(system.events("frontend-0", "usage.lost"))
    measured("25c", f"gap {1e3 * gap_s:.0f} ms, an upload of 1 MB takes {uploaded_s:.1f} s, a batch {batch_s:.0f} s")
    assert gap_s < SYNC_S + 0.25 + STEP_S + stalls.slack_s
    assert texts == [each.expected for each in questions]
    assert len(kept.content) == 9 * 2**17
    assert not num_lost
