"""Which transport a worker gets."""

import importlib.util
import sys
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("cuda", "wheels", "on_cpu", "on_gpu"),
    [
        ("13.0", {"nixl_cu12", "nixl_cu13"}, "nixl_cu13", "nixl_cu13"),
        ("13.0", {"nixl_cu12"}, "nixl_cu12", None),
        (None, {"nixl_cu12", "nixl_cu13"}, "nixl_cu12", None),
    ],
)
def test_host_memory_and_gpu_take_the_same_nixl(
    cuda: str | None, wheels: set[str], on_cpu: str, on_gpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(cuda=cuda)))  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in wheels else None)
    assert (nixl.find_nixl("cpu"), nixl.find_nixl("cuda:0")) == (on_cpu, on_gpu)
