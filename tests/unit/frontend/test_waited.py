import asyncio

import pytest

from frontend.waited import Waited

pytestmark = pytest.mark.anyio


async def test_who_waits_hears_of_the_end_whenever_it_comes() -> None:
    late, early = Waited(), Waited()
    early.end()
    await early.wait()
    asyncio.get_running_loop().call_soon(late.end)
    assert not late.is_over
    await late.wait()
    assert late.is_over


async def test_ending_twice_is_ending_once_also_where_the_one_who_waited_was_cancelled() -> None:
    waited = Waited()
    waiting = asyncio.ensure_future(waited.wait())
    waiting.cancel()
    waited.end()
    waited.end()
    assert waited.is_over
    assert waiting.cancelled()
