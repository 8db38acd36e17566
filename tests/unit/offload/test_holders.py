"""Who has a block: the one that told last, until it says otherwise."""

from offload.holders import Holders


def test_the_last_one_to_tell_is_the_holder() -> None:
    holders = Holders()
    holders.store("w-1", [1, 2])
    holders.store("w-2", [2, 3])
    assert [holders.find(block) for block in (1, 2, 3, 4)] == ["w-1", "w-2", "w-2", None]
    holders.remove("w-1", [1, 2])
    assert [holders.find(block) for block in (1, 2)] == [None, "w-2"], "another one has it still"
    holders.forget("w-2")
    assert len(holders) == 0


def test_memory_is_bounded() -> None:
    holders = Holders(max_blocks=3)
    holders.store("w-1", [1, 2, 3])
    holders.store("w-1", [1])
    holders.store("w-2", [4])
    assert [holders.find(block) for block in (1, 2, 3, 4)] == ["w-1", None, "w-1", "w-2"]
