"""Which transport a worker gets."""

import importlib.util

import msgspec
import pytest

from bus.errors import BadConfig
from components.engines.exchange import BlockMemory
from components.transfer import nixl, open_transfer

pytestmark = pytest.mark.anyio


async def _transport(memory: BlockMemory) -> str:
    async with open_transfer(memory, "w-test") as transfer:
        return transfer.offer([1], lambda _: None).source.transport


async def test_nixl_is_used_where_it_is_installed(memory: BlockMemory) -> None:
    is_installed = any(importlib.util.find_spec(wheel) for wheel in ("nixl_cu12", "nixl_cu13"))
    assert await _transport(memory) == ("nixl" if is_installed else "loopback")


@pytest.mark.parametrize("wheels", [(), ("json",)], ids=["not installed", "broken"])
async def test_without_nixl_there_is_loopback_unless_it_must_be_nixl(
    memory: BlockMemory, wheels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl, "_WHEELS", wheels)
    assert await _transport(memory) == "loopback"
    with pytest.raises(BadConfig, match="NIXL"):
        async with open_transfer(memory, "w-test", transport="nixl"):
            pass


async def test_blocks_on_a_gpu_need_nixl_of_its_cuda(memory: BlockMemory) -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    on_gpu = msgspec.structs.replace(memory, device="cuda:0", buffer=None)
    for transport in ("auto", "nixl", "loopback"):
        with pytest.raises(BadConfig, match="cuda:0"):
            async with open_transfer(on_gpu, "w-test", transport=transport):  # type: ignore[arg-type]
                pass
