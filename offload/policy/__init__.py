"""Which slot to empty when room is needed: LRU and S3-FIFO, each within the levels of priority."""

from offload.policy.lru import Lru
from offload.policy.order import Policy
from offload.policy.priority import Levels
from offload.policy.s3fifo import S3Fifo

__all__ = ["Levels", "Lru", "Policy", "S3Fifo"]
