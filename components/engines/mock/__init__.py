"""The mock engine: no model, but the scheduling, block accounting, events and timing of one."""

from components.engines.mock.engine import load_engine

__all__ = ["load_engine"]
