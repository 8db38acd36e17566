"""The embedded nats-server."""

import socket

import anyio
import pytest

from bus.errors import BusUnavailable
from bus.server import Server, check_version, find_binary, free_port, prepare, run_server, wait_answering

pytestmark = pytest.mark.anyio


def test_the_binary_is_found_and_new_enough():
    assert check_version(find_binary()) >= (2, 11, 0)


def test_a_port_that_is_taken_is_replaced():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


async def test_a_server_runs_while_its_context_is_open(tmp_path):
    async with run_server(str(tmp_path)) as server:
        greeting = await wait_answering(server.files.port)
        assert greeting["jetstream"] is True
        assert greeting["max_payload"] == 8 * 2**20
        assert server.process is not None
        process = server.process
    assert process.returncode is not None
    with pytest.raises(BusUnavailable):
        await wait_answering(server.files.port, timeout_s=0.05)


async def test_a_killed_server_comes_back_on_its_port(own_server):
    port = own_server.files.port
    for _ in range(3):
        await own_server.kill()
        with anyio.fail_after(30):
            await own_server.start()
        assert own_server.files.port == port
        await wait_answering(port)


async def test_a_server_that_cannot_start_says_why(tmp_path):
    files = prepare(str(tmp_path))
    await anyio.Path(files.config_path).write_text("listen: {")
    with anyio.fail_after(30), pytest.raises(BusUnavailable, match="map"):
        await Server(files).start()
