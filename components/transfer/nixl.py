"""I/O. NIXL's agent with types, our errors and one descriptor a block; to be used from one thread.

Its progress thread is off: it would keep a core busy. So nothing happens here, for peers neither, but in calls.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from bus.errors import BadConfig, TransferFailed
from bus.messages.transfer import AgentAddress
from components.engines.exchange import BlockMemory
from components.transfer.checks import digest
from components.transfer.leases import NUM_SLOTS, SEAL_BYTES
from components.transfer.memory import this_host

MAX_PEERS = 64
"""Peers that are kept ready; the one that was used longest ago makes room."""
_WHEELS = ("nixl_cu12", "nixl_cu13")
"""By CUDA's version. The module `nixl` would choose, too, but loads torch for that."""


def find_nixl(device: str) -> str | None:
    """Return the module to use for blocks on a device, None where NIXL is not installed.

    On a GPU it must be built for the CUDA of torch, which is loaded then; elsewhere any will do, but host memory beside
    a GPU takes the same: each brings a UCX of its own, and two in a process may hang (NIXL's issue 1668).
    """
    installed = [wheel for wheel in _WHEELS if importlib.util.find_spec(wheel) is not None]
    torch = sys.modules.get("torch")
    major = "" if torch is None else (torch.version.cuda or "").partition(".")[0]
    fitting = [wheel for wheel in installed if wheel == f"nixl_cu{major}"]
    usable = fitting if device.startswith("cuda") else fitting or installed
    return usable[0] if usable else None


class Region(msgspec.Struct, frozen=True):
    """Memory to register: `count` pieces of `size` bytes, one after the other."""

    address: int
    size: int
    count: int
    device: str = "cpu"

    @property
    def memory_type(self) -> str:
        return "VRAM" if self.device.startswith("cuda") else "DRAM"

    @property
    def device_number(self) -> int:
        return int(self.device.partition(":")[2] or 0)


class _Peer(msgspec.Struct, frozen=True):
    address: AgentAddress
    blocks: Any
    seals: Any


class NixlAgent:
    """Blocks, seals and a place for the seals of peers, registered once; peers, prepared once each."""

    def __init__(self, name: str, wheel: str, memory: BlockMemory, seals: int, scratch: Region) -> None:
        """`seals` is the address of `NUM_SLOTS` seals, `scratch` has room for those that are read at a time.

        Takes half a second. Raises `BadConfig` when NIXL does not work here.
        """
        pool = Region(memory.address, memory.block_bytes, memory.num_blocks, memory.device)
        try:
            api, self._errors = _load(wheel)
            self._agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False))
            for region in (pool, seal_region(seals), scratch):
                place = (region.address, region.size * region.count, region.device_number, "")
                self._agent.register_memory([place], region.memory_type)
            self._our_blocks = self._prepare("NIXL_INIT_AGENT", pool)
            self._our_scratch = self._prepare("NIXL_INIT_AGENT", scratch)
            endpoint = self._agent.get_agent_metadata()
        except Exception as error:  # a native library raises what it likes when the machine lacks something
            raise BadConfig(f"NIXL does not work here: {type(error).__name__}: {error}") from error
        self._peers: dict[str, _Peer] = {}
        self.address = AgentAddress(
            agent=name,
            transport="nixl",
            fingerprint=memory.fingerprint,
            block_bytes=memory.block_bytes,
            num_blocks=memory.num_blocks,
            device=memory.device,
            endpoint=endpoint,
            endpoint_digest=digest(endpoint),
            pool_address=memory.address,
            seals_address=seals,
            host=this_host(),
            pid=os.getpid(),
        )

    def connect(self, peer: AgentAddress) -> None:
        """Prepare a peer unless it is; raise `TransferFailed` when it is not there or says what cannot be."""
        known = self._peers.pop(peer.agent, None)
        if known is not None:
            self._peers[peer.agent] = known
            if known.address != peer:
                raise TransferFailed(f"two agents are called {peer.agent}")
            return
        if len(self._peers) >= MAX_PEERS:
            self.forget(next(iter(self._peers)))
        with self._mapped(peer.agent):
            name = peer.agent
            if name != self.address.agent:
                self._load_peer(peer)
            try:
                pool = Region(peer.pool_address, peer.block_bytes, peer.num_blocks, peer.device)
                blocks = self._prepare(name, pool)
                self._peers[name] = _Peer(peer, blocks, self._prepare(name, seal_region(peer.seals_address)))
            except self._errors:
                self._disconnect(name)
                raise

    def forget(self, name: str) -> None:
        """Give up a peer, also one that is not known; a read under way ends with an error."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            peer.blocks.release()
            peer.seals.release()
            self._disconnect(name)

    def pull_blocks(self, name: str, theirs: Sequence[int], ours: Sequence[int]) -> Any:
        """Start to read blocks of a connected peer into ours, and return a handle for `is_done` and `release`."""
        return self._pull(name, self._our_blocks, ours, self._peers[name].blocks, theirs)

    def pull_seal(self, name: str, slot: int, place: int) -> Any:
        """Start to read a seal of a connected peer into the scratch memory, and return a handle."""
        return self._pull(name, self._our_scratch, [place], self._peers[name].seals, [slot])

    def is_done(self, name: str, handle: Any) -> bool:
        """Move a read on and tell whether all bytes are here; raise `TransferFailed` when the peer is lost."""
        with self._mapped(name):
            state = self._agent.check_xfer_state(handle)
        if state == "ERR":
            raise TransferFailed(f"reading from worker {name} failed")
        return bool(state == "DONE")

    def release(self, handle: Any) -> None:
        """Give up a handle. What is under way may still arrive, until `close`; a second call does nothing."""
        with suppress(*self._errors):
            handle.release()

    def notify(self, name: str, note: bytes) -> None:
        """Send a few bytes to a connected peer; raise `TransferFailed` when it is lost."""
        with self._mapped(name):
            self._agent.send_notif(name, note)

    def take_notes(self) -> list[bytes]:
        """Do what is to be done for peers, and return the notes that came from them."""
        try:
            return [note for notes in self._agent.get_new_notifs().values() for note in notes]
        except self._errors:
            return []

    def close(self) -> None:
        """End everything at once: when this returns, no peer reads here and no byte arrives any more."""
        for name in list(self._peers):
            self.forget(name)
        self._our_blocks.release()
        self._our_scratch.release()
        del self._our_blocks, self._our_scratch, self._agent

    def _pull(self, name: str, our_side: Any, ours: Sequence[int], their_side: Any, theirs: Sequence[int]) -> Any:
        import numpy as np

        indices = np.array(ours, dtype=np.int32), np.array(theirs, dtype=np.int32)
        with self._mapped(name):
            handle = self._agent.make_prepped_xfer("READ", our_side, indices[0], their_side, indices[1])
            try:
                self._agent.transfer(handle)
            except self._errors:
                self.release(handle)
                raise
        return handle

    def _prepare(self, name: str, region: Region) -> Any:
        """Return a list of descriptors, one for each piece."""
        import numpy as np

        row = (region.address, region.size, region.device_number, region.size, region.count)
        return self._agent.prep_xfer_dlist(name, np.array([row], dtype=np.uint64), region.memory_type)

    def _load_peer(self, peer: AgentAddress) -> None:
        loaded = self._agent.add_remote_agent(peer.endpoint)
        if loaded != peer.agent.encode():
            self._disconnect(loaded.decode())
            raise TransferFailed(f"the endpoint of {peer.agent} is that of {loaded!r}")

    def _disconnect(self, name: str) -> None:
        if name != self.address.agent:
            with suppress(*self._errors):
                self._agent.remove_remote_agent(name)

    @contextmanager
    def _mapped(self, name: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise TransferFailed(f"worker {name} is gone or unreachable: {error}") from error


def seal_region(address: int) -> Region:
    """Return where the seals of a worker are."""
    return Region(address, SEAL_BYTES, NUM_SLOTS)


def _load(wheel: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Import NIXL and return its module and its errors, which have no class in common."""
    # All that goes wrong is raised as well; what the libraries print would come between the lines of our log.
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")
    os.environ.setdefault("UCX_LOG_LEVEL", "fatal")
    bindings = importlib.import_module(f"{wheel}._bindings")
    errors = [each for each in vars(bindings).values() if isinstance(each, type) and issubclass(each, Exception)]
    return importlib.import_module(f"{wheel}._api"), tuple(errors)
