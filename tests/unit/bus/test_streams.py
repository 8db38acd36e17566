"""What `nats/` declares, and how it compares with what a server has."""

import json

import pytest

from bus import resources, streams
from bus.connection import load_declared
from bus.errors import BadConfig
from bus.subjects import Subjects

SUBJECTS = Subjects("ns")


def test_every_declared_file_is_understood():
    declared = {(entry.kind, entry.short): entry for entry in load_declared(SUBJECTS)}
    assert {("stream", "WORK"), ("stream", "USAGE"), ("stream", "DEAD")} <= declared.keys()
    assert {("bucket", "REG"), ("bucket", "STATE"), ("objects", "FILES")} <= declared.keys()
    work = declared["stream", "WORK"]
    assert work.name == "NS_WORK"
    assert work.is_memory
    assert work.settings["subjects"] == ["ns.work.v1.>"]
    registry = declared["bucket", "REG"]
    assert registry.name == "KV_NS_REG"
    assert registry.settings["subjects"] == ["$KV.NS_REG.>"]
    assert registry.settings["allow_msg_ttl"]


def test_streams_of_all_declared_files_are_bounded():
    for entry in load_declared(SUBJECTS):
        assert entry.settings["max_bytes"] > 0, entry.short


def test_namespaces_do_not_share_a_stream():
    ours = {entry.name for entry in load_declared(Subjects("ns"))}
    theirs = {entry.name for entry in load_declared(Subjects("ns2"))}
    assert not ours & theirs


@pytest.mark.parametrize(("short", "text"), [("work", "{}"), ("A B", "{}"), ("A", "[]"), ("A", "{"), ("A", '{"a":')])
def test_a_broken_file_is_named(short, text):
    with pytest.raises(BadConfig, match=short):
        streams.declare("stream", short, text, SUBJECTS)


def declare(**settings):
    return streams.declare("stream", "A", json.dumps({"subjects": ["a"], **settings}), SUBJECTS)


def test_what_the_server_leaves_out_is_the_same_as_zero_or_false():
    declared = declare(allow_direct=False, max_age=0, max_msgs=-1)
    assert streams.compare(declared, {"name": "NS_A", "subjects": ["ns.a"]}) == []
    assert streams.compare(declared, {"name": "NS_A", "subjects": ["ns.a"], "max_msgs": -1, "other": 5}) == []


def test_differences_say_which_can_be_mended():
    declared = declare(storage="memory", max_msgs=10)
    found = {"name": "NS_A", "subjects": ["ns.a"], "storage": "file", "max_msgs": 20}
    differences = streams.compare(declared, found)
    assert [(d.field, d.declared, d.found, d.is_fixed) for d in differences] == [
        ("storage", "memory", "file", True),
        ("max_msgs", 10, 20, False),
    ]
    text = streams.describe_mismatch(declared, differences, "Because.")
    for part in ("NS_A", "storage", "'memory'", "'file'", "Because.", "nats stream rm --force NS_A"):
        assert part in text


def test_data_files_are_found():
    assert "jetstream" in resources.read_text("nats", "server.conf")
    with pytest.raises(FileNotFoundError):
        resources.data_dir("nowhere")
