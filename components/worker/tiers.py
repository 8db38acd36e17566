"""I/O. Opens the tiers that the configuration names, below an engine."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import structlog

from bus.config import OffloadConfig
from bus.errors import BadConfig
from bus.protocol import Bus
from bus.subjects import slug
from components.engines import Engine
from components.engines.exchange import BlockMemory
from components.transfer import TransferOpener
from components.worker.offload import TieredEngine
from components.worker.peer_tier import PeerTier, arena_memory
from offload.disk import open_disk
from offload.gate import Gate
from offload.host import HostArena
from offload.key import frame_bytes
from offload.mover import open_mover
from offload.promote import Link
from offload.quota import Quota
from offload.remote import RemoteTier
from offload.store import Store
from offload.tier import Tier

StoreFinder = Callable[[OffloadConfig], list[Store]]
"""Makes the shared stores that the configuration names: `offload.stores.make_stores`."""

log = structlog.get_logger()


@asynccontextmanager
async def open_tiers(
    config: OffloadConfig,
    engine: Engine,
    bus: Bus,
    *,
    model: str,
    worker: str,
    open_transfer: TransferOpener,
    find_stores: StoreFinder,
) -> AsyncIterator[Engine]:
    """Return an engine with the tiers that the configuration names; without any, the engine itself.

    On leaving, what is in host memory is written on for a while. Raises `BadConfig` for tiers that cannot be, or not
    below this engine.
    """
    if not config.host_bytes:
        if config.disk_bytes or config.redis.url or config.s3.url:
            raise BadConfig(
                "tiers need host memory, where their blocks come in: set offload.host_bytes, as in 1073741824"
            )
        yield engine
        return
    memory = engine.memory
    if memory is None or (memory.buffer is None and memory.open_copier is None):
        where = "nowhere that is known" if memory is None else f"on {memory.device}, out of reach"
        raise BadConfig(f"tiers copy an engine's blocks, and this one has them {where}: set offload.host_bytes=0")
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(memory, config.host_bytes, policy=config.policy))
        tiers: list[Tier] = []
        on_disk: list[Link] = []
        if config.disk_bytes:
            opened = open_disk(
                Path(config.disk_path), config.disk_bytes, memory.block_bytes, memory.fingerprint, policy=config.policy
            )
            disk = await stack.enter_async_context(opened)
            tiers.append(disk)
            on_disk += [Link(*found) for found in disk.newest]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        if config.peers:
            arena = arena_memory(host, memory.fingerprint)
            transfer = await stack.enter_async_context(open_transfer(arena, f"{worker}-host"))
            peers = PeerTier(bus, host, transfer, model=slug(model), worker=worker)
            tasks.start_soon(peers.run)
            tiers.append(peers)
        for store in find_stores(config):
            remote = _remote_tier(store, config, bus, memory, model=slug(model), worker=worker)
            tasks.start_soon(remote.run)
            tiers.append(remote)
        names = [tier.name for tier in tiers]
        gate = Gate(names, block_size=engine.spec.block_size)
        mover = await stack.enter_async_context(open_mover(host, tiers, gate, block_size=engine.spec.block_size))
        mover.measure("disk", on_disk)
        log.info("offload.opened", host_blocks=host.slots.num_slots, tiers=names)
        try:
            yield TieredEngine(engine, memory, mover, gate, tasks, model=model)
        except Exception as error:  # raised below: task groups would wrap it
            failure = error
    if failure is not None:
        raise failure


@asynccontextmanager
async def open_host(memory: BlockMemory, num_bytes: int, *, policy: str = "lru") -> AsyncIterator[HostArena]:
    """Take host memory for the blocks of an engine; what copies them between the two is open as long."""
    host = HostArena(num_bytes, memory.block_bytes, policy=policy)
    if memory.open_copier is None:
        yield host
        return
    async with memory.open_copier(host.payloads) as copier:
        host.copier = copier
        yield host


def _remote_tier(
    store: Store, config: OffloadConfig, bus: Bus, memory: BlockMemory, *, model: str, worker: str
) -> RemoteTier:
    setting = config.limits(store.name)
    return RemoteTier(
        store,
        bus,
        model=model,
        worker=worker,
        fingerprint=memory.fingerprint,
        block_bytes=frame_bytes(memory.block_bytes),
        quota=Quota(setting.max_bytes, setting.max_salt_bytes, setting.keep_s),
        keep_s=setting.keep_s,
        wall=time.time,
    )
