"""Workers as processes: killed, stopped, and free of what they do not need."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from bus.messages.base import pack_u32

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[4]


@asynccontextmanager
async def worker_process(stage: Any, model: Path) -> AsyncIterator[anyio.abc.Process]:
    settings = {
        "bus.url": stage.server.url,
        "worker.model": str(model),
        "worker.served_name": "tiny",
        "worker.engine": "mock",
        "mock.step_base_s": "0.005",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "components.cli", "worker", *options]
    async with await anyio.open_process(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"vocab_size": 2048, "max_position_embeddings": 4096, "eos_token_id": 1}')
    (directory / "tokenizer.json").write_text("{}")
    return directory


async def test_requests_of_a_killed_worker_go_on_elsewhere(
    nats_stage: Any, model: Path, text: Callable[[list[int], int], list[int]]
) -> None:
    owner = nats_stage.owner
    async with worker_process(nats_stage, model) as killed:
        for ticket in range(8):
            await owner.send(ticket, [ticket], max_tokens=3000)
        await owner.wait(lambda: all(len(owner.texts[ticket]) >= 3 for ticket in range(8)))
        async with worker_process(nats_stage, model) as other:
            await owner.send(50, [50], max_tokens=1)
            killed.kill()
            await killed.wait()
            for ticket in range(8):
                done = list(owner.texts[ticket])
                owner.texts[100 + ticket] = done
                await owner.send(100 + ticket, [ticket], max_tokens=len(done) + 9, output=pack_u32(done), attempt=1)
            await owner.wait_ended(*range(100, 108))
            for ticket in range(8):
                moved = owner.texts[100 + ticket]
                assert moved == text([ticket], len(moved))
            other.send_signal(signal.SIGTERM)
            with anyio.fail_after(30):
                assert await other.wait() == 0


def test_a_mock_worker_loads_no_torch() -> None:
    code = (
        "import sys, components.worker.service, components.engines.mock;"
        "print(sorted({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
