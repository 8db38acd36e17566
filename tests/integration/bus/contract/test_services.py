"""Services that NATS tools find: the same on a server and in memory."""

import json

import pytest

from bus.errors import BadConfig
from bus.service import Endpoint, Service, run_service

pytestmark = pytest.mark.anyio


def service(namespace, handler):
    endpoint = Endpoint(name="ask", subject=f"{namespace}.ask.v1.*.*", handler=handler, queue="doors")
    return Service(name=f"{namespace}-ask", version="1.2.3", description="answers", endpoints=[endpoint])


async def test_one_request_may_get_several_replies(bus, other, namespace, collect):
    calls, replies = collect(), collect()
    with run_service(bus, service(namespace, calls)):
        await bus.flush()
        other.subscribe("answers.here", replies)
        await other.flush()
        other.publish(f"{namespace}.ask.v1.m.t", b"question", reply="answers.here", headers={"A": "b"})
        (call,) = await calls.wait(1)
        assert (call.subject, call.payload, call.headers) == (f"{namespace}.ask.v1.m.t", b"question", {"A": "b"})
        for part in (b"one", b"two", b""):
            call.respond(part)
        call.finish()
        call.finish()
        assert [reply.payload for reply in await replies.wait(3)] == [b"one", b"two", b""]


async def test_a_service_is_found_described_and_counted(bus, other, namespace):
    def handle(call):
        if call.payload == b"bad":
            raise ValueError("secret detail")
        call.respond(b"fine")
        call.finish()

    with run_service(bus, service(namespace, handle)) as instance:
        await bus.flush()
        name = f"{namespace}-ask"
        ping = json.loads((await other.request(f"$SRV.PING.{name}", b"")).payload)
        assert ping == {
            "type": "io.nats.micro.v1.ping_response",
            "name": name,
            "id": instance,
            "version": "1.2.3",
            "metadata": {},
        }
        info = json.loads((await other.request(f"$SRV.INFO.{name}.{instance}", b"")).payload)
        assert info["endpoints"][0]["subject"] == f"{namespace}.ask.v1.*.*"
        assert (await other.request(f"{namespace}.ask.v1.m.t", b"good")).payload == b"fine"
        failed = await other.request(f"{namespace}.ask.v1.m.t", b"bad")
        assert failed.headers == {"Nats-Service-Error": "ValueError", "Nats-Service-Error-Code": "500"}
        stats = json.loads((await other.request(f"$SRV.STATS.{name}", b"")).payload)["endpoints"][0]
        assert (stats["num_requests"], stats["num_errors"]) == (2, 1)
        assert stats["processing_time"] >= 2 * stats["average_processing_time"] > 0


async def test_a_service_that_was_left_is_gone(bus, other, namespace, collect):
    with run_service(bus, service(namespace, collect())):
        pass
    await bus.flush()
    heard = collect()
    other.subscribe("answers.here", heard)
    other.publish("$SRV.PING", b"", reply="answers.here")
    await other.flush()
    await bus.flush()
    await other.flush()
    assert not any(namespace in message.payload.decode() for message in heard.items)


@pytest.mark.parametrize(("name", "version"), [("a b", "1.0.0"), ("a", "1"), ("", "1.0.0"), ("a.b", "1.0.0")])
def test_names_that_tools_cannot_read_are_refused(name, version):
    with pytest.raises(BadConfig), run_service(None, Service(name=name, version=version, description="", endpoints=[])):
        pass
