"""Pure. KV blocks from one worker's memory into another's: the contract; `open_transfer` gives a worker its side."""

from components.transfer.contract import BlockMemory, Ending, OnEnd, Source, Transfer

__all__ = ["BlockMemory", "Ending", "OnEnd", "Source", "Transfer"]
