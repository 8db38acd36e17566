"""One connection as the event loop sees it: over TLS, under a flood, beside a peer that does not read."""

import subprocess
from itertools import pairwise
from pathlib import Path

import anyio.lowlevel
import pytest

from bus.config import BusConfig
from bus.connection import open_bus
from bus.errors import AccessDenied, BusUnavailable
from bus.protocol import ConsumerSpec
from bus.subjects import Subjects

pytestmark = pytest.mark.anyio


def our_bus(url, namespace):
    return open_bus(BusConfig(url=url, connect_timeout_s=20.0), Subjects(namespace), name="test")


def _append(path, text):
    with Path(path).open("a") as file:
        file.write(text)


@pytest.fixture
async def tls_server(own_server, tmp_path, monkeypatch):
    """A server that speaks TLS only, with a certificate that this process trusts."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {cert}"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *subject], check=True, capture_output=True)  # noqa: ASYNC221
    await own_server.kill()
    _append(own_server.files.config_path, f'\ntls {{ cert_file: "{cert}", key_file: "{key}" }}\n')
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    await own_server.start()
    return own_server


async def test_everything_goes_over_tls_and_on_after_a_cut(tls_server, namespace, collect, eventually):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    jobs, heard = collect(), collect()

    def take(delivery):
        jobs(delivery.payload)
        delivery.ack()

    async with our_bus(tls_server.url, namespace) as bus:
        await bus.ensure()
        bus.subscribe(f"{namespace}.load.v1.>", heard)
        async with bus.pull(ConsumerSpec(stream="WORK", name="any", filter_subject=lane), take) as pull:
            pull.grant(10)
            for number in range(1, 3):
                payload = bytes([number]) * 300_000
                await bus.append(lane, payload)
                bus.publish(f"{namespace}.load.v1.m.w", payload)
                await jobs.wait(number)
                await heard.wait(number)
                assert jobs.items[-1] == heard.items[-1].payload == payload
                session = bus._link._session
                session._transport.abort()
                await eventually(lambda: bus._link._session is not session)  # noqa: B023
                await bus.append(lane, b"", timeout_s=30)
                await jobs.until(lambda items: items[-1] == b"")
                jobs.items.pop()


async def test_a_server_whose_certificate_is_not_trusted_is_not_used(tls_server, namespace, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(AccessDenied, match="certificate"):
        async with our_bus(tls_server.url, namespace):
            pass


async def test_a_flood_leaves_turns_to_others(scripted, namespace):
    """Whoever reads as long as there is something would take this whole flood in one turn."""
    num_messages, num_seen, turns = 150_000, 0, []
    is_done = anyio.Event()

    def take(incoming):
        nonlocal num_seen
        num_seen += 1
        if num_seen == num_messages:
            is_done.set()

    async def count_turns():
        while not is_done.is_set():
            turns.append(num_seen)
            await anyio.lowlevel.checkpoint()

    async with our_bus(scripted.url, namespace) as bus:
        bus.subscribe(f"{namespace}.load.v1.>", take)
        sid = bus._link._last_sid
        scripted.say(b"".join([b"MSG s %d 100\r\n%s\r\n" % (sid, bytes(100))] * num_messages))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count_turns)
            with anyio.fail_after(30):
                await is_done.wait()
    assert max(after - before for before, after in pairwise(turns)) < 5_000


async def test_what_a_clogged_link_holds_is_bounded_and_goes_on(nats_url, namespace):
    async with our_bus(nats_url, namespace) as bus:
        session = bus._link._session
        session.clog(True)
        for _ in range(15):
            bus.publish(f"{namespace}.load.v1.m.w", bytes(2**20))
            await anyio.lowlevel.checkpoint()
        with pytest.raises(BusUnavailable, match="reads too slowly"):
            bus.publish(f"{namespace}.load.v1.m.w", bytes(2**20))
        session.clog(False)
        await bus.flush(timeout_s=30)
        bus.publish(f"{namespace}.load.v1.m.w", bytes(2**20))
