"""I/O. The broker's own clock: what it does later belongs to none of the processes that share its event loop."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack

Arguments = TypeVarTuple("Arguments")


def call_later(
    delay_s: float, callback: Callable[[Unpack[Arguments]], object], *args: *Arguments
) -> asyncio.TimerHandle:
    """Call after a while, in a context of its own: that of the caller would make it a part of the caller's process."""
    return asyncio.get_running_loop().call_later(delay_s, callback, *args, context=Context())
