"""How fast blocks go to shared stores and come back: GB/s, blocks/s, and CPU of this process for each block.

    python tests/bench/offload_remote.py

Redis (a real one, by unix socket and TCP) stands beside the same values through redis-py where that is installed, and
beside memcpy of this machine; S3 is the stub of the tests, one process of Python that shares the CPUs. To hold: 1.5
GB/s from Redis by unix socket at 64 KiB, 3,000 objects/s from S3.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median

import anyio

from bus.server import free_port
from offload.key import HEADER_BYTES, BlockKey, is_sound, seal, space_of
from offload.redis import RedisStore
from offload.s3 import ObjectStore
from offload.store import Blob, Store

STUB = Path(__file__).parents[1] / "integration" / "offload" / "remote" / "s3_stub.py"
ROUNDS = 7
ROUND_S = 0.3
BATCH = 64

Work = Callable[[], Awaitable[object]]


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(title: str, block_bytes: int, works: Mapping[str, Work]) -> None:
    """Do each work by turns, so that what else this machine does hits all alike; print the median of the rounds."""
    print(f"{title}, blocks of {block_bytes // 1024} KiB, {BATCH} in a call")
    rates, costs = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for work in works.values():
        await work()
    for _ in range(ROUNDS):
        for name, work in works.items():
            blocks, started_at, cpu_at = 0, time.perf_counter(), cpu_s()
            while time.perf_counter() - started_at < ROUND_S:
                await work()
                blocks += BATCH
            rates[name].append(blocks / (time.perf_counter() - started_at))
            costs[name].append((cpu_s() - cpu_at) / blocks * 1e6)
    for name, rate in rates.items():
        size = 0 if name == "has" else block_bytes
        print(
            f"  {name:<24} {median(rate) * size / 1e9:6.2f} GB/s  {median(rate):8.0f} blocks/s  "
            f"{median(costs[name]):7.1f} us of CPU a block"
        )


def make_blobs(block_bytes: int) -> list[Blob]:
    memory = memoryview(bytearray(BATCH * block_bytes))
    blobs = []
    for number in range(BATCH):
        view = memory[number * block_bytes : (number + 1) * block_bytes]
        view[HEADER_BYTES:] = os.urandom(block_bytes - HEADER_BYTES)
        key = BlockKey(space_of("bench"), number + 1)
        seal(view, key, 0)
        blobs.append(Blob(key, view))
    return blobs


def store_works(store: Store, block_bytes: int) -> dict[str, Work]:
    blobs = make_blobs(block_bytes)

    async def get_checked() -> None:
        await store.get(blobs)
        assert all(is_sound(blob.view, blob.key) for blob in blobs)

    return {
        "put": lambda: store.put(blobs, 600.0),
        "get": lambda: store.get(blobs),
        "get and check": get_checked,
        "has": lambda: store.has([blob.key for blob in blobs]),
    }


def redis_py_works(path: str, block_bytes: int) -> dict[str, Work]:
    try:
        import redis.asyncio
    except ModuleNotFoundError:
        return {}
    client = redis.asyncio.Redis(unix_socket_path=path)
    blobs = make_blobs(block_bytes)

    async def get() -> None:
        for blob, value in zip(blobs, await client.mget([str(blob.key.block_hash) for blob in blobs]), strict=True):
            blob.view[:] = value

    async def put() -> None:
        pipeline = client.pipeline(transaction=False)
        for blob in blobs:
            pipeline.set(str(blob.key.block_hash), bytes(blob.view), px=600_000)
        await pipeline.execute()

    return {"put by redis-py": put, "get by redis-py": get}


def memcpy_works(block_bytes: int) -> dict[str, Work]:
    source, target = make_blobs(block_bytes), make_blobs(block_bytes)

    async def copy() -> None:
        for one, other in zip(source, target, strict=True):
            other.view[:] = one.view

    return {"memcpy": copy}


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        ports = [free_port(), free_port()]
        path = f"{directory}/redis.sock"
        commands = [[sys.executable, str(STUB), str(ports[1]), f"{directory}/faults"]]
        if shutil.which("redis-server"):
            options = ["--port", str(ports[0]), "--unixsocket", path, "--save", "", "--appendonly", "no"]
            commands.append(["redis-server", *options])
        else:
            print("there is no redis-server here: apt-get install redis-server")
        servers = [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in commands]  # noqa: ASYNC220
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[1]}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_UNSIGNED_PAYLOAD": "true",  # as under TLS
        }
        try:
            await anyio.sleep(0.5)
            if len(servers) > 1:
                for block_bytes in (65_536, 1_048_576):
                    local = RedisStore(f"unix://{path}", timeout_s=5.0)
                    works = store_works(local, block_bytes) | redis_py_works(path, block_bytes)
                    await measure("Redis by unix socket", block_bytes, works | memcpy_works(block_bytes))
                    await local.aclose()
                distant = RedisStore(f"redis://:@127.0.0.1:{ports[0]}", timeout_s=5.0)
                await measure("Redis by TCP", 65_536, store_works(distant, 65_536))
                await distant.aclose()
            objects = ObjectStore("s3://bench-blocks", keep_s=600.0, timeout_s=20.0)
            await measure("S3 stub", 65_536, store_works(objects, 65_536))
        finally:
            for server in servers:
                server.kill()
                server.wait()


if __name__ == "__main__":
    anyio.run(main)
