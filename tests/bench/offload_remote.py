"""How fast blocks go to shared stores and come back: GB/s, blocks/s, and CPU of this process for each block.

    python tests/bench/offload_remote.py

Redis (a real one, by unix socket and TCP) stands beside the same values through redis-py where that is installed, and
beside memcpy of this machine; S3 is the stub of the tests. Bars of issue 7: 1.5 GB/s from Redis by unix socket at
64 KiB, 3,000 objects/s from S3.
"""

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from offload.key import HEADER_BYTES, BlockKey, is_sound, seal, space_of
from offload.redis import RedisStore
from offload.s3 import ObjectStore
from offload.store import Blob, Store

STUB = Path(__file__).parents[1] / "integration" / "offload" / "remote" / "s3_stub.py"
SECONDS = 1.5
"""For each measurement."""
BATCH = 64


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(name: str, num_blocks: int, block_bytes: int, work: Callable[[], Awaitable[object]]) -> None:
    await work()
    rounds, started_at, cpu_at = 0, time.perf_counter(), cpu_s()
    while time.perf_counter() - started_at < SECONDS:
        await work()
        rounds += 1
    elapsed_s, used_s = time.perf_counter() - started_at, cpu_s() - cpu_at
    blocks = rounds * num_blocks
    print(
        f"  {name:<24} {blocks * block_bytes / elapsed_s / 1e9:6.2f} GB/s  {blocks / elapsed_s:8.0f} blocks/s  "
        f"{used_s / blocks * 1e6:7.1f} us of CPU a block"
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


async def bench_store(title: str, store: Store, block_bytes: int) -> None:
    print(f"{title}, blocks of {block_bytes // 1024} KiB, {BATCH} in a call")
    blobs = make_blobs(block_bytes)

    async def get_checked() -> None:
        await store.get(blobs)
        assert all(is_sound(blob.view, blob.key) for blob in blobs)

    await measure("put", BATCH, block_bytes, lambda: store.put(blobs, 600.0))
    await measure("get", BATCH, block_bytes, lambda: store.get(blobs))
    await measure("get and check", BATCH, block_bytes, get_checked)
    await measure("has", BATCH, 0, lambda: store.has([blob.key for blob in blobs]))


async def bench_redis_py(path: str, block_bytes: int) -> None:
    try:
        import redis.asyncio
    except ModuleNotFoundError:
        return
    print(f"redis-py by unix socket, blocks of {block_bytes // 1024} KiB, {BATCH} in a call")
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

    await measure("put", BATCH, block_bytes, put)
    await measure("get", BATCH, block_bytes, get)
    await client.aclose()


async def bench_memcpy(block_bytes: int) -> None:
    source, target = make_blobs(block_bytes), make_blobs(block_bytes)

    async def copy() -> None:
        for one, other in zip(source, target, strict=True):
            other.view[:] = one.view

    print(f"memcpy, blocks of {block_bytes // 1024} KiB")
    await measure("copy", BATCH, block_bytes, copy)


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
            await bench_memcpy(65_536)
            if len(servers) > 1:
                for title, url in (
                    ("Redis by unix socket", f"unix://{path}"),
                    ("by TCP", f"redis://:@127.0.0.1:{ports[0]}"),
                ):
                    store = RedisStore(url, timeout_s=5.0)
                    for block_bytes in (65_536, 1_048_576):
                        await bench_store(title, store, block_bytes)
                    await store.aclose()
                await bench_redis_py(path, 65_536)
            objects = ObjectStore("s3://bench-blocks", keep_s=600.0, timeout_s=20.0)
            await bench_store("S3 stub", objects, 65_536)
        finally:
            for server in servers:
                server.kill()
                server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


anyio.run(main)
