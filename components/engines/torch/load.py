"""I/O: From a model directory and the worker's settings to a running engine."""

import os
from pathlib import Path

import torch

from bus.config import Config, WorkerConfig
from bus.errors import BadConfig
from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest, EngineSpec
from components.engines.grammar import Grammars
from components.engines.torch.architecture import Architecture, Dtype
from components.engines.torch.cache import KvCache, block_bytes
from components.engines.torch.driver import TorchDriver
from components.engines.torch.engine import TorchEngine
from components.engines.torch.memory import describe_memory
from components.engines.torch.network import Network
from components.engines.torch.weights import load_weights, read_architecture

CPU_KV_BYTES = 512 * 2**20
GPU_KV_SHARE = 0.8
"""Of the memory that is free once the weights are loaded; the rest is for activations."""
DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_engine(config: Config, directory: Path, *, model: str) -> TorchDriver:
    """Load the model and try it out; blocks. Raises `BadConfig` for a model or setting that cannot work."""
    engine = load_core(config.worker, directory, model=model)
    return TorchDriver(engine, Grammars(directory / "tokenizer.json", engine.spec.vocab_size))


def load_core(worker: WorkerConfig, directory: Path, *, model: str) -> TorchEngine:
    """Load the synchronous engine, as `load_engine`."""
    if worker.max_batch_tokens < worker.max_running:
        raise BadConfig("worker.max_batch_tokens must be at least worker.max_running: one token for each sequence")
    architecture = read_architecture(directory)
    device = pick_device(worker.device)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # threads that share cores with other processes spin: several times slower
    dtype = DTYPES[pick_dtype(worker, architecture, device)]
    weights = load_weights(directory, architecture, dtype, device)
    num_blocks = _kv_bytes(worker, device) // block_bytes(architecture, worker.block_size, dtype)
    max_model_len = pick_max_model_len(worker, architecture, num_blocks)
    cache = KvCache(architecture, num_blocks=num_blocks, block_size=worker.block_size, dtype=dtype, device=device)
    spec = EngineSpec(
        name="torch",
        max_model_len=max_model_len,
        max_running=worker.max_running,
        block_size=worker.block_size,
        num_blocks=num_blocks,
        vocab_size=architecture.vocab_size,
    )
    network = Network(architecture, weights, cache, max_model_len)
    engine = TorchEngine(
        network,
        cache,
        spec=spec,
        max_batch_tokens=worker.max_batch_tokens,
        model=model,
        memory=describe_memory(cache, architecture, weights, model=model),
    )
    _try_out(engine)
    return engine


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU that torch sees, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadConfig(f"worker.device {name!r} is no device: use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise BadConfig(f"worker.device {name!r} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadConfig(f"worker.device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
    return device


def pick_dtype(worker: WorkerConfig, architecture: Architecture, device: torch.device) -> Dtype:
    """Return the setting, or for `auto` what the checkpoint has and the device is fast with."""
    if worker.dtype != "auto":
        return worker.dtype
    if device.type != "cpu" or architecture.dtype == "float32":
        return architecture.dtype
    capabilities = torch.cpu.get_capabilities()
    is_fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return "bfloat16" if is_fast else "float32"


def pick_max_model_len(worker: WorkerConfig, architecture: Architecture, num_blocks: int) -> int:
    """Return how long a sequence may get: the setting if it can be had, else what model and cache allow."""
    room = num_blocks * worker.block_size
    possible = min(architecture.max_model_len, room)
    if possible < 2 or worker.max_model_len > possible:
        raise BadConfig(
            f"worker.max_model_len {worker.max_model_len or 'auto'} is out of reach: the model allows "
            f"{architecture.max_model_len} tokens, worker.kv_cache_bytes has room for {room}"
        )
    return worker.max_model_len or possible


def _kv_bytes(worker: WorkerConfig, device: torch.device) -> int:
    if worker.kv_cache_bytes:
        return worker.kv_cache_bytes
    if device.type == "cpu":
        return CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * GPU_KV_SHARE)


def _try_out(engine: TorchEngine) -> None:
    """Compute two tokens: broken weights show at the start, and the first request finds everything warm."""
    stopping = Stopping(max_tokens=2, ignore_eos=True)
    engine.add(EngineRequest(0, [0], [], Sampling(temperature=0.0), stopping, frozenset()))
    while engine.has_work:
        for ended in engine.step().ended:
            if ended.reason == "abort":
                raise BadConfig("the model computes values that are not finite: are the weights or the dtype wrong?")
