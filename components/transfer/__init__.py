"""I/O. KV blocks from one worker's memory into another's: `open_transfer` gives a worker its side of it."""

from components.transfer.contract import Ending, OnEnd, Source, Transfer
from components.transfer.open import TransferOpener, open_transfer

__all__ = ["Ending", "OnEnd", "Source", "Transfer", "TransferOpener", "open_transfer"]
