"""The permission table, held against a real server: what each role needs is allowed, what it must not do is denied."""

from collections.abc import Iterator
from typing import Any

import pytest

from bus.roles import ROLES, BusRole

NAMES: dict[BusRole, str] = {role: f"{role[0]}-me" for role in ROLES} | {"tenant": "acme", "operator": "op-me"}
API = "$JS.API"

PUBLISH: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # role: (allowed, denied)
    "frontend": (
        (
            "busway.req.v1.tiny.standard.acme",
            "busway.work.v1.tiny.both.any.standard",
            "busway.ctl.v1.w-1",
            "busway.usage.v1.tiny.acme",
            "busway.job.v1.acme",
            "busway.pick.v1.tiny",
            "busway.response.v1.f-other",
            "busway.spent.v1.f-me",
            "busway.dead.v1.jobs",
            "$KV.BUSWAY_REG.frontend.f-me",
            "$KV.BUSWAY_RESPONSES.acme.r1",
            "$KV.BUSWAY_UPLOADS.acme.f1",
            f"{API}.STREAM.CREATE.BUSWAY_WORK",
            f"{API}.STREAM.UPDATE.KV_BUSWAY_REG",
            f"{API}.STREAM.INFO.BUSWAY_WORK",
            f"{API}.CONSUMER.CREATE.BUSWAY_JOBS.batches.busway.job.v1.*",
            f"{API}.CONSUMER.CREATE.KV_BUSWAY_KEYS.watch-1.$KV.BUSWAY_KEYS.>",
            f"{API}.DIRECT.GET.KV_BUSWAY_RESPONSES.$KV.BUSWAY_RESPONSES.acme.r1",
            f"{API}.DIRECT.GET.BUSWAY_JOBS",
        ),
        (
            "busway.spent.v1.f-other",
            f"{API}.STREAM.DELETE.BUSWAY_WORK",
            f"{API}.STREAM.PURGE.BUSWAY_REQ",
            f"{API}.STREAM.CREATE.MINE",
            f"{API}.STREAM.MSG.GET.BUSWAY_REQ",
            f"{API}.DIRECT.GET.BUSWAY_REQ",
            f"{API}.STREAM.MSG.DELETE.BUSWAY_REQ",
            f"{API}.STREAM.SNAPSHOT.BUSWAY_REQ",
            f"{API}.STREAM.RESTORE.BUSWAY_REQ",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.spy.busway.work.>",
            f"{API}.CONSUMER.CREATE.BUSWAY_REQ.spy.busway.req.>",
            f"{API}.CONSUMER.DELETE.BUSWAY_WORK.own-w-1-both",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_WORK.own-w-1-both",
            f"{API}.SERVER.REMOVE",
            "$JS.ACK.BUSWAY_WORK.own-w-1-both.1.1.1.1.1",
            "$KV.BUSWAY_KEYS.0000",
            "$KV.BUSWAY_REG.frontend.f-other",
            "$KV.BUSWAY_REG.worker.w-1",
            "$KV.BUSWAY_REG.model.tiny",
            "busway.out.v1.f-other.w-1",
            "busway.kv.v1.tiny.w-1",
            "busway.load.v1.tiny.w-1",
            "server.disconnect",
            "$SYS.REQ.SERVER.PING",
            "_INBOX.f-other.1",
        ),
    ),
    "worker": (
        (
            "busway.out.v1.f-1.w-me",
            "busway.kv.v1.tiny.w-me",
            "busway.load.v1.tiny.w-me",
            "busway.dead.v1.work",
            "$KV.BUSWAY_REG.worker.w-me",
            "$KV.BUSWAY_REG.model.tiny",
            "$O.BUSWAY_FILES.C.n1",
            f"{API}.STREAM.INFO.BUSWAY_WORK",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.own-w-me-both.busway.work.v1.tiny.both.w-me.*",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.any-tiny-both-standard.busway.work.v1.tiny.both.any.standard",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_WORK.own-w-me-both",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_WORK.any-tiny-decode-batch",
            f"{API}.CONSUMER.CREATE.KV_BUSWAY_REG.watch-1.$KV.BUSWAY_REG.>",
        ),
        (
            "busway.out.v1.f-1.w-other",
            "busway.kv.v1.tiny.w-other",
            "busway.kv.v1.other.w-me",
            "busway.load.v1.tiny.w-other",
            "busway.ctl.v1.w-other",
            "busway.req.v1.other.standard.acme",
            "busway.work.v1.other.both.any.standard",
            "busway.usage.v1.tiny.acme",
            "$KV.BUSWAY_REG.worker.w-other",
            "$KV.BUSWAY_REG.model.other",
            "$KV.BUSWAY_KEYS.0000",
            "$KV.BUSWAY_RESPONSES.acme.r1",
            f"{API}.STREAM.CREATE.BUSWAY_WORK",
            f"{API}.STREAM.DELETE.BUSWAY_KV",
            f"{API}.STREAM.PURGE.BUSWAY_KV",
            f"{API}.STREAM.UPDATE.BUSWAY_WORK",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.own-w-other-both.busway.work.v1.tiny.both.w-me.*",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.own-w-me-both.busway.work.v1.tiny.both.w-other.*",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.own-w-me-both.busway.work.v1.tiny.both.w-me.>.x",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.own-w-me-both",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK",
            f"{API}.CONSUMER.DURABLE.CREATE.BUSWAY_WORK.own-w-me-both",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.any-other-both-standard.busway.work.v1.other.both.any.standard",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_WORK.own-w-other-both",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_WORK.any-other-both-standard",
            f"{API}.CONSUMER.DELETE.BUSWAY_WORK.own-w-other-both",
            f"{API}.CONSUMER.CREATE.KV_BUSWAY_KEYS.watch-1.$KV.BUSWAY_KEYS.>",
            f"{API}.DIRECT.GET.KV_BUSWAY_RESPONSES.$KV.BUSWAY_RESPONSES.acme.r1",
            f"{API}.DIRECT.GET.BUSWAY_JOBS",
            "$JS.ACK.BUSWAY_WORK.own-w-other-both.1.1.1.1.1",
            "server.disconnect",
            "_INBOX.f-1.1",
        ),
    ),
    "router": (
        (
            "busway.work.v1.tiny.both.w-1.standard",
            "busway.route.v1.tiny.r-me",
            "busway.out.v1.f-1.r-me",
            "busway.kvq.v1.w-1",
            "$KV.BUSWAY_REG.router.r-me",
            f"{API}.CONSUMER.CREATE.BUSWAY_REQ.req-tiny-standard.busway.req.v1.tiny.standard.*",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_REQ.req-tiny-standard",
            f"{API}.CONSUMER.CREATE.BUSWAY_KV.replay-1.busway.kv.v1.tiny.*",
        ),
        (
            "busway.out.v1.f-1.w-1",
            "busway.route.v1.tiny.r-other",
            "busway.ctl.v1.w-1",
            "$KV.BUSWAY_REG.router.r-other",
            "$KV.BUSWAY_REG.worker.w-1",
            "busway.kv.v1.tiny.w-1",
            f"{API}.STREAM.DELETE.BUSWAY_REQ",
            f"{API}.STREAM.CREATE.BUSWAY_REQ",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_WORK.own-w-1-both",
            f"{API}.CONSUMER.DELETE.BUSWAY_REQ.req-tiny-standard",
            "$JS.ACK.BUSWAY_WORK.own-w-1-both.1.1.1.1.1",
        ),
    ),
    "planner": (
        (f"{API}.INFO", f"{API}.CONSUMER.CREATE.KV_BUSWAY_REG.watch-1.$KV.BUSWAY_REG.>", "busway.dead.v1.plan"),
        (
            "busway.out.v1.f-1.w-1",
            "busway.req.v1.tiny.standard.acme",
            "busway.load.v1.tiny.w-1",
            "$KV.BUSWAY_KEYS.0000",
            "$KV.BUSWAY_REG.worker.w-1",
            f"{API}.STREAM.DELETE.BUSWAY_WORK",
            f"{API}.CONSUMER.CREATE.BUSWAY_REQ.spy.busway.req.>",
        ),
    ),
    "component": (
        (
            "busway.dead.v1.usage",
            "$KV.BUSWAY_STATE.usage.acme",
            f"{API}.CONSUMER.CREATE.BUSWAY_USAGE.usage-meter.busway.usage.v1.>",
            f"{API}.CONSUMER.MSG.NEXT.BUSWAY_USAGE.usage-meter",
        ),
        (
            "busway.ctl.v1.w-1",
            "busway.usage.v1.tiny.acme",
            "$KV.BUSWAY_KEYS.0000",
            f"{API}.STREAM.DELETE.BUSWAY_USAGE",
            f"{API}.CONSUMER.CREATE.BUSWAY_REQ.spy.busway.req.>",
            f"{API}.CONSUMER.CREATE.BUSWAY_DEAD.spy.busway.dead.>",
        ),
    ),
    "observer": (
        (f"{API}.INFO", f"{API}.STREAM.NAMES", f"{API}.STREAM.INFO.BUSWAY_WORK", "$SRV.PING"),
        (
            "busway.load.v1.tiny.w-1",
            "busway.ask.v1.tiny.acme",
            "busway.kvq.v1.w-1",
            "$KV.BUSWAY_REG.worker.w-1",
            f"{API}.STREAM.MSG.GET.BUSWAY_WORK",
            f"{API}.CONSUMER.CREATE.BUSWAY_WORK.spy.busway.work.>",
            f"{API}.DIRECT.GET.KV_BUSWAY_KEYS.$KV.BUSWAY_KEYS.0000",
            f"{API}.STREAM.DELETE.BUSWAY_WORK",
        ),
    ),
    "gateway": (
        ("busway.pick.v1.tiny",),
        ("busway.ask.v1.tiny.acme", "busway.req.v1.tiny.standard.acme", f"{API}.INFO"),
    ),
    "tenant": (
        ("busway.ask.v1.tiny.acme",),
        (
            "busway.ask.v1.tiny.umbrella",
            "busway.req.v1.tiny.standard.acme",
            "busway.work.v1.tiny.both.any.standard",
            "busway.ctl.v1.w-1",
            "busway.pick.v1.tiny",
            "_INBOX.umbrella.1",
            "$KV.BUSWAY_KEYS.0000",
            "$KV.BUSWAY_REG.worker.w-1",
            f"{API}.INFO",
            f"{API}.STREAM.NAMES",
            f"{API}.STREAM.MSG.GET.BUSWAY_REQ",
            "$SRV.PING",
        ),
    ),
    "operator": ((f"{API}.STREAM.NAMES", "$KV.BUSWAY_KEYS.0000", "busway.ctl.v1.w-1"), ()),
}

SUBSCRIBE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "frontend": (
        ("busway.out.v1.f-me.*", "busway.load.v1.*.*", "busway.ask.v1.*.*", "server.disconnect", "_INBOX.f-me.1.*"),
        (
            ">",
            "busway.>",
            "busway.out.v1.f-other.*",
            "busway.out.v1.*.*",
            "busway.req.v1.>",
            "_INBOX.>",
            "_INBOX.f-other.*",
        ),
    ),
    "worker": (
        ("busway.ctl.v1.w-me", "busway.ctl.v1.any", "busway.kvq.v1.w-me", "server.*", "_INBOX.w-me.>"),
        (
            ">",
            "busway.>",
            "busway.ctl.v1.w-other",
            "busway.ctl.v1.*",
            "busway.out.v1.>",
            "busway.work.v1.>",
            "busway.ask.v1.>",
            "_INBOX.>",
            "$JS.EVENT.>",
            "$KV.>",
        ),
    ),
    "router": (
        ("busway.load.v1.*.*", "busway.route.v1.*.*", "busway.pick.v1.*", "busway.kv.v1.tiny.*", "_INBOX.r-me.>"),
        (">", "busway.out.v1.>", "busway.ask.v1.>", "busway.ctl.v1.w-1", "_INBOX.>"),
    ),
    "planner": (("busway.load.v1.*.*", "_INBOX.p-me.>"), (">", "busway.out.v1.>", "busway.req.v1.>", "_INBOX.>")),
    "component": (("busway.load.v1.*.*", "_INBOX.c-me.>"), (">", "busway.out.v1.>", "busway.req.v1.>", "_INBOX.>")),
    "observer": (
        ("busway.load.v1.*.*", "busway.route.v1.*.*", "busway.kv.v1.*.*", "server.*", "_INBOX.o-me.>"),
        (
            ">",
            "busway.>",
            "busway.out.v1.>",
            "busway.req.v1.>",
            "busway.work.v1.>",
            "busway.ask.v1.>",
            "_INBOX.>",
            "$KV.>",
        ),
    ),
    "gateway": (("_INBOX.g-me.>",), (">", "busway.>", "_INBOX.>")),
    "tenant": (
        ("_INBOX.acme.>",),
        (
            ">",
            "busway.>",
            "busway.ask.v1.*.acme",
            "busway.out.v1.>",
            "_INBOX.>",
            "_INBOX.umbrella.>",
            "server.*",
            "$SRV.>",
        ),
    ),
    "operator": ((">", "busway.>", "_INBOX.>"), ()),
}


@pytest.fixture
def client(request: pytest.FixtureRequest, guarded: Any, raw: Any) -> Iterator[Any]:
    client = raw(guarded.config(request.param, NAMES[request.param])).log_in()
    yield client
    client.close()


@pytest.mark.parametrize(("client", "role"), [(role, role) for role in PUBLISH], indirect=["client"])
def test_each_role_publishes_what_it_needs_and_nothing_else(client: Any, role: str) -> None:
    allowed, denied = PUBLISH[role]
    said = client.denied(*(f"PUB {subject} 0\r\n".encode() for subject in (*allowed, *denied)))
    assert said == {("Publish", subject) for subject in denied}


@pytest.mark.parametrize(("client", "role"), [(role, role) for role in SUBSCRIBE], indirect=["client"])
def test_each_role_hears_what_it_needs_and_nothing_else(client: Any, role: str) -> None:
    allowed, denied = SUBSCRIBE[role]
    said = client.denied(*(f"SUB {subject} {number}".encode() for number, subject in enumerate((*allowed, *denied))))
    assert said == {("Subscription", subject) for subject in denied}


@pytest.mark.parametrize(("client", "role"), [(role, role) for role in SUBSCRIBE], indirect=["client"])
def test_a_queue_group_opens_no_door_that_is_closed(client: Any, role: str) -> None:
    denied = SUBSCRIBE[role][1]
    said = client.say(*(f"SUB {subject} group {number}".encode() for number, subject in enumerate(denied)))
    assert said.count(b"Permissions Violation for Subscription") == len(denied)


def test_every_role_is_in_the_table() -> None:
    assert set(PUBLISH) == set(SUBSCRIBE) == set(ROLES)
