"""Pure. Which block is in which slot, in some 40 bytes a block: an open hash table over columns."""

from array import array

from offload.key import SPACE_BYTES, BlockKey, Space


class BlockIndex:
    """Blocks by key, at most one for each of the slots `0 .. num_slots - 1`.

    A dict of keys would take some 300 bytes a block. Here the table holds slot numbers only (4 bytes a place, at most
    two of three taken, collisions to the next place) and compares with the columns, which are needed anyway.
    """

    def __init__(self, num_slots: int) -> None:
        self.hashes = array("Q", bytes(8 * num_slots))
        """By slot; of no meaning where there is no block."""
        self.parents = array("Q", bytes(8 * num_slots))
        self._spaces = bytearray(SPACE_BYTES * num_slots)
        self._table = array("I", bytes(4 << (num_slots * 3 // 2).bit_length()))
        self._mask = len(self._table) - 1
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def find(self, key: BlockKey) -> int | None:
        """Return the slot of a block, None if it is not here."""
        space, block_hash = key
        table, hashes, mask = self._table, self.hashes, self._mask
        place = block_hash & mask
        while taken := table[place]:
            slot = taken - 1
            if hashes[slot] == block_hash and self._spaces.startswith(space, slot * SPACE_BYTES):
                return slot
            place = place + 1 & mask
        return None

    def key_at(self, slot: int) -> BlockKey:
        """Return the key of the block in a slot that has one."""
        start = slot * SPACE_BYTES
        return BlockKey(Space(bytes(self._spaces[start : start + SPACE_BYTES])), self.hashes[slot])

    def insert(self, key: BlockKey, parent_hash: int, slot: int) -> None:
        """Put a block that is not here into a slot that has none."""
        self.hashes[slot] = key.block_hash
        self.parents[slot] = parent_hash
        self._spaces[slot * SPACE_BYTES : (slot + 1) * SPACE_BYTES] = key.space
        place = key.block_hash & self._mask
        while self._table[place]:
            place = place + 1 & self._mask
        self._table[place] = slot + 1
        self._size += 1

    def remove(self, slot: int) -> None:
        """Take the block out of a slot that has one, and close the gap: those behind it move up to their places."""
        table, hashes, mask = self._table, self.hashes, self._mask
        hole = hashes[slot] & mask
        while table[hole] != slot + 1:
            hole = hole + 1 & mask
        place = hole + 1 & mask
        while taken := table[place]:
            home = hashes[taken - 1] & mask
            if (place - home & mask) >= (place - hole & mask):
                table[hole] = taken
                hole = place
            place = place + 1 & mask
        table[hole] = 0
        self._size -= 1
