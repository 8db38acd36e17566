"""What a watcher is told when it reads a bucket, and reads it again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Malformed
from bus.protocol import Entry
from bus.replica import Replica, check_key


def test_a_value_is_told_once():
    replica = Replica()
    assert replica.accept(Entry("a", b"1", 1))
    assert not replica.accept(Entry("a", b"1", 1))
    assert replica.accept(Entry("a", b"1", 2))


def test_a_key_that_was_never_told_is_not_told_as_gone():
    replica = Replica()
    assert not replica.accept(Entry("a", None, 1))
    assert replica.accept(Entry("a", b"1", 2))
    assert replica.accept(Entry("a", None, 3))
    assert not replica.accept(Entry("a", None, 4))


def test_after_a_loss_keys_that_came_back_are_not_told_as_gone():
    replica = Replica()
    for key in "abc":
        replica.accept(Entry(key, b"1", 1))
    replica.begin()
    assert not replica.accept(Entry("a", b"1", 1))
    assert replica.has_missing()
    assert replica.accept(Entry("b", b"1", 7))
    assert replica.settle() == [Entry("c", None, 1)]
    assert not replica.has_missing()
    assert replica.settle() == []


def test_a_new_value_under_an_old_revision_is_news():
    replica = Replica()
    replica.accept(Entry("a", b"before", 1))
    replica.begin()
    assert replica.accept(Entry("a", b"after", 1))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, b"1", b"2"]))), st.integers(0, 20))
def test_a_watcher_always_ends_with_what_is_there(writes, lost_at):
    """Whatever is written, and whenever the bucket is read anew: what was told adds up to what there is."""
    replica, told, truth = Replica(), {}, {}

    def tell(entry):
        if replica.accept(entry):
            told[entry.key] = entry.value

    for revision, (key, value) in enumerate(writes, 1):
        truth[key] = Entry(key, value, revision)
        if revision == lost_at:
            replica.begin()
            for entry in truth.values():
                tell(entry)
        else:
            tell(truth[key])
    for entry in replica.settle():
        told[entry.key] = None
    assert {key: value for key, value in told.items() if value is not None} == {
        key: entry.value for key, entry in truth.items() if entry.value is not None
    }


@pytest.mark.parametrize("key", ["a", "worker.w-1", "a/b=c_d", "A.b.C"])
def test_keys_of_the_registry_pass(key):
    assert check_key(key) == key


@given(st.text(max_size=30))
def test_no_key_that_passes_leaves_its_bucket(key):
    try:
        check_key(key)
    except Malformed:
        return
    assert not set(key) & set(" \r\n\t*>")
    assert all(key.split("."))
