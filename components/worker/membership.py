"""I/O. A worker's place in the registry: its own card, its model's card, and the files that the latter names."""

import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from bus.config import WorkerConfig
from bus.messages.fleet import ModelCard, WorkerCard
from bus.messages.inference import Role
from bus.protocol import Bus
from bus.registry import keep_card, keep_shared_card
from bus.subjects import slug
from bus.version import VERSION
from components.engines import EngineSpec
from components.worker.model import Model


@asynccontextmanager
async def join_pool(
    bus: Bus, worker: str, model: Model, spec: EngineSpec, config: WorkerConfig
) -> AsyncIterator[Callable[[frozenset[Role]], Awaitable[None]]]:
    """Be in the registry while the context is open; a broker that lost its data gets everything again.

    Yields a function that says there that the roles are others now.
    """
    files = await _put_files(bus, model)

    async def restore() -> None:
        await _put_files(bus, model)

    bus.on_reconnect(restore)
    model_card = ModelCard(
        model=model.name,
        max_model_len=spec.max_model_len,
        vocab_size=spec.vocab_size,
        eos_token_ids=sorted(model.eos_token_ids),
        files=files,
        created_at=time.time(),
    )
    worker_card = WorkerCard(
        worker=worker,
        model=model.name,
        engine=spec.name,
        roles=list(config.roles),
        slots=config.slots,
        block_size=spec.block_size,
        num_blocks=spec.num_blocks,
        max_model_len=spec.max_model_len,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=VERSION,
        started_at=time.time(),
        max_running=spec.max_running,
        takes_early=True,
    )
    async with (
        keep_shared_card(bus, f"model.{slug(model.name)}", model_card),
        keep_card(bus, f"worker.{worker}", worker_card) as replace_card,
    ):
        yield lambda roles: replace_card(msgspec.structs.replace(worker_card, roles=sorted(roles)))


async def _put_files(bus: Bus, model: Model) -> dict[str, str]:
    return {name: await bus.put_blob(data) for name, data in model.files.items()}
