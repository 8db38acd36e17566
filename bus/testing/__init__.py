"""A broker in memory, for tests and simulations: the contract of `bus.protocol.Bus` without a server."""

from bus.testing.broker import MemoryBroker
from bus.testing.connection import MemoryBus

__all__ = ["MemoryBroker", "MemoryBus"]
