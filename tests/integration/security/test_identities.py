"""Who gets in, as whom, for how long; and what a process cannot do in the name of another one."""

import asyncio
import json
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.access import client_context, process_name
from bus.codec import encode
from bus.config import BusConfig
from bus.connection import open_bus
from bus.errors import AccessDenied, BadConfig, BusUnavailable
from bus.gone import watch_gone
from bus.messages.inference import Cancel
from bus.protocol import ConsumerSpec, Delivery
from bus.subjects import Subjects
from bus.vault import open_vault

pytestmark = pytest.mark.anyio

SUBJECTS = Subjects("busway")
JOB = SUBJECTS.work("tiny", "both", "any", "standard")


def lane(worker: str = "") -> ConsumerSpec:
    if worker:
        return ConsumerSpec(
            stream="WORK", name=f"own-{worker}-both", filter_subject=SUBJECTS.work("tiny", "both", worker, "*")
        )
    return ConsumerSpec(stream="WORK", name="any-tiny-both-standard", filter_subject=JOB)


def content(config: BusConfig) -> str:
    return Path(config.credentials_file).read_text()


def seed_of(config: BusConfig) -> str:
    return content(config).split("SEED-----\n")[1].split("\n")[0]


async def refused(url: str, **options: Any) -> str:
    config = BusConfig(url=url, connect_timeout_s=3.0, **options)
    with pytest.raises((AccessDenied, BusUnavailable)) as caught:
        async with open_bus(config, SUBJECTS, name="stranger"):
            pass
    return str(caught.value)


async def test_nobody_gets_in_without_credentials_of_this_authority(guarded: Any, tmp_path: Path) -> None:
    trusted = str(guarded.vault.authority_file)
    assert "lets nobody in without credentials" in await refused(guarded.files.url, tls_ca=trusted)
    forger = open_vault(str(tmp_path))
    _, forged = forger.issue("operator", name="op", path=tmp_path / "forged.creds")
    why = await refused(guarded.files.url, tls_ca=trusted, credentials_file=str(forged))
    assert "does not take the credentials of op" in why
    config = guarded.config("observer", "o-copied")
    stolen = tmp_path / "stolen.creds"
    stolen.write_text(content(config).replace(seed_of(config), "SUAA"))
    with pytest.raises(BadConfig, match="seed"):
        async with open_bus(BusConfig(url=guarded.files.url, credentials_file=str(stolen)), SUBJECTS, name="x"):
            pass


async def test_a_token_without_its_key_is_worth_nothing(guarded: Any, raw: Any, trusting: ssl.SSLContext) -> None:
    """Tokens are seen in the server's events; signatures are of a nonce that no two connections share."""
    config = guarded.config("observer", "o-watched")
    token = content(config).split("-----\n")[1].split("\n")[0]
    client = raw(config, trusting)
    proof = json.dumps({"jwt": token, "sig": "A" * 86}).encode()
    assert b"Authorization Violation" in client.say(b"CONNECT " + proof)
    client.close()


async def test_what_is_not_tls_hears_nothing(guarded: Any) -> None:
    host, port = guarded.files.url.removeprefix("tls://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        said = b""
        with suppress(ConnectionError):
            while data := plain.recv(4096):
                said += data
    assert b'"tls_required":true' in said
    assert b"PONG" not in said


async def test_a_server_with_a_certificate_of_others_is_not_spoken_to(guarded: Any) -> None:
    config = guarded.config("observer", "o-careful")
    system_trust = await refused(config.url, credentials_file=config.credentials_file)
    assert "certificate" in system_trust.lower()


async def test_tls_that_is_cut_out_of_the_greeting_is_noticed(guarded: Any) -> None:
    heard = b""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        writer.write(b'INFO {"server_id":"S","version":"2.15.0","headers":true,"auth_required":true,"nonce":"n"}\r\n')
        heard += await reader.read()
        writer.close()

    config = guarded.config("observer", "o-downgraded")
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as between:
        url = f"tls://127.0.0.1:{between.sockets[0].getsockname()[1]}"
        assert "offers no TLS" in await refused(url, credentials_file=config.credentials_file, tls_ca=config.tls_ca)
    assert heard == b""


async def test_a_process_is_called_what_its_credentials_say(guarded: Any, collect: Any) -> None:
    config = guarded.config("worker", "w-real")
    assert process_name(config, "worker") == "w-real"
    with pytest.raises(BadConfig, match=r"w-real, worker, but this is a router: busway keys bus router"):
        process_name(config, "router")
    gone: list[str] = []
    left = anyio.Event()

    def on_gone(name: str) -> None:
        gone.append(name)
        left.set()

    async with guarded.open("observer", "o-gone") as watcher:
        with watch_gone(watcher, on_gone, grace_s=0.0):
            await watcher.flush()
            async with open_bus(config, SUBJECTS, name="w-victim"):
                pass
            with anyio.fail_after(30):
                await left.wait()
    assert gone == ["w-real"]


async def test_a_delivery_is_acknowledged_by_who_got_it(guarded: Any, raw: Any, collect: type) -> None:
    got = collect()
    async with (
        guarded.open("frontend", "f-acks") as frontend,
        guarded.open("worker", "w-acks") as worker,
    ):
        await frontend.ensure()
        await worker.ensure()
        thief = raw(guarded.config("worker", "w-thief")).log_in()
        async with worker.pull(lane(), got) as pull:
            pull.grant(2)
            await frontend.append(JOB, b"1")
            delivery: Delivery = (await got.wait(1))[0]
            reply = delivery._incoming.reply  # type: ignore[attr-defined]
            said = thief.denied(f"PUB {reply} 4\r\n+ACK".encode())
            assert said == {("Publish", reply)}
            delivery.ack()
            await frontend.append(JOB, b"2")
            (await got.wait(2))[1].ack()
            await worker.flush()
        thief.close()
        info = await frontend.request("$JS.API.STREAM.INFO.BUSWAY_WORK", b"")
        assert json.loads(info.payload)["state"]["messages"] == 0


async def test_a_delivery_is_not_acknowledged_over_the_next_connection(guarded: Any, collect: type) -> None:
    """The right to answer ended with the connection that brought it; the message comes again."""
    got, back = collect(), anyio.Event()

    async def come_back() -> None:
        back.set()

    async with guarded.open("frontend", "f-cut") as frontend, guarded.open("worker", "w-cut") as worker:
        await frontend.ensure()
        await worker.ensure()
        worker.on_reconnect(come_back)
        async with worker.pull(lane(), got) as pull:
            pull.grant(2)
            await frontend.append(JOB, b"late")
            await frontend.append(JOB, b"waits")
            late, waits = (await got.wait(2))[:2]
            waits.ack()
            worker._link._session.end(ConnectionResetError("cut"))
            with anyio.fail_after(30):
                await back.wait()
            late.ack()
            pull.grant(2)
            for delivery in (await got.wait(4))[2:]:
                delivery.ack()
            await worker.flush()
        info = await frontend.request("$JS.API.STREAM.INFO.BUSWAY_WORK", b"")
    assert json.loads(info.payload)["state"]["messages"] == 0
    assert not [line for line in guarded.log().splitlines() if "w-cut" in line and "Violation" in line]


async def test_streams_are_made_by_their_owners_and_waited_for_by_others(tmp_path: Path) -> None:
    from bus.connection import load_declared
    from bus.server import run_server

    vault = open_vault(str(tmp_path))
    guard = vault.guard(SUBJECTS, load_declared(SUBJECTS), ["127.0.0.1"])
    async with run_server(str(tmp_path), guard=guard) as server:

        def config(role: Any) -> BusConfig:
            path = str(vault.issue(role)[1])
            return BusConfig(url=server.url, credentials_file=path, tls_ca=guard.tls_ca)

        is_there = anyio.Event()

        async def wait_for_streams() -> None:
            async with open_bus(config("router"), SUBJECTS, name="r") as router:
                await router.ensure()
                is_there.set()

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks, open_bus(config("frontend"), SUBJECTS, name="f") as owner:
                tasks.start_soon(wait_for_streams)
                with pytest.raises(BusUnavailable):
                    await owner.append(SUBJECTS.job("acme"), b"", timeout_s=0.2)
                assert not is_there.is_set()
                await owner.ensure()
                await is_there.wait()


async def test_credentials_that_ended_end_the_connection(guarded: Any, raw: Any) -> None:
    """Attack 23, first half: the server cuts the connection when they end, and not before."""
    ends_at = int(time.time()) + 2
    client = raw(guarded.config("worker", "w-ending", expires_at=ends_at)).log_in()
    while client.say():
        assert time.time() < ends_at + 30
    assert time.time() >= ends_at - 0.1
    client.close()


async def test_revoked_credentials_end_the_connection_at_once(guarded: Any, raw: Any) -> None:
    """Attack 23, second half: others go on."""
    victim, other = (
        raw(guarded.config("worker", "w-revoked")).log_in(),
        raw(guarded.config("worker", "w-stays")).log_in(),
    )
    victim.say()
    other.say()
    guarded.vault.revoke("w-revoked")
    guarded.reload()
    deadline = time.monotonic() + 30
    while victim.say():
        assert time.monotonic() < deadline
    assert b"PONG" in other.say()
    path = Path(guarded.config("worker", "w-revoked").credentials_file)
    config = BusConfig(url=guarded.files.url, credentials_file=str(path), tls_ca=str(guarded.vault.authority_file))
    assert "revoked" in await refused(config.url, credentials_file=str(path), tls_ca=config.tls_ca)
    victim.close()
    other.close()


async def test_what_a_worker_says_to_others_is_not_heard(guarded: Any, collect: type) -> None:
    """Attack 17, with Busway's own client: the command does not arrive, and the sender goes on."""
    heard = collect()
    async with guarded.open("worker", "w-hears") as victim, guarded.open("worker", "w-shouts") as worker:
        victim.subscribe(SUBJECTS.ctl("w-hears"), heard)
        await victim.flush()
        worker.publish(SUBJECTS.ctl("w-hears"), encode(Cancel(frontend="f-1", tickets=b"")))
        await worker.flush()
        await victim.flush()
        assert heard.items == []
        assert worker.is_connected
    said = [line for line in guarded.log().splitlines() if "w-shouts" in line and "Violation" in line]
    assert any('Subject "busway.ctl.v1.w-hears"' in line for line in said), "the server notes who tried what"


async def test_owners_of_streams_destroy_none(guarded: Any) -> None:
    """Attack 19: what a frontend makes it can neither delete nor purge, nor read whole."""
    async with guarded.open("frontend", "f-destroys") as frontend:
        await frontend.ensure()
        await frontend.append(SUBJECTS.job("acme"), b"1")
        for verb in ("DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.DELETE", "MSG.GET"):
            with pytest.raises(BusUnavailable):
                await frontend.request(f"$JS.API.STREAM.{verb}.BUSWAY_JOBS", b"{}", timeout_s=0.1)
        info = await frontend.request("$JS.API.STREAM.INFO.BUSWAY_JOBS", b"")
        assert json.loads(info.payload)["state"]["messages"] == 1


async def test_monitoring_is_answered_on_the_loopback_address_only(guarded: Any) -> None:
    port = guarded.files.monitor_port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as monitor:
        monitor.sendall(b"GET /varz HTTP/1.0\r\n\r\n")
        assert b"200 OK" in monitor.recv(1000)
    for address in ("127.0.0.2", socket.gethostbyname(socket.gethostname())):
        if address != "127.0.0.1":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)


async def test_secrets_are_not_told(guarded: Any, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    """No seed in logs, errors or representations; files are closed to others."""
    config = guarded.config("worker", "w-discreet")
    seed = seed_of(config)
    async with guarded.open("worker", "w-discreet") as bus:
        assert seed not in repr(vars(bus))
        assert seed not in repr(bus._link.access)
    told = caplog.text + "".join(capsys.readouterr())
    assert seed not in told
    for path in (guarded.vault.folder, *guarded.vault.folder.rglob("*"), Path(config.credentials_file)):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_the_server_keeps_old_tls_out(guarded: Any) -> None:
    context = client_context(str(guarded.vault.authority_file))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    text = (Path(guarded.files.config_path).parent / "secure.conf").read_text()
    assert 'min_version: "1.2"' in text
