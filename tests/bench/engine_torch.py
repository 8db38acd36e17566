"""Print what a step of the PyTorch engine costs on one CPU thread: scheduling, network and sampling together.

The model is that of the measurements this engine is compared with: 4 layers of 256, 4 heads over 2 key heads of 64,
4,096 tokens, random bfloat16 weights. Run `python -m tests.bench.engine_torch` from the repository's root.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from bus.config import WorkerConfig
from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest
from components.engines.torch.engine import TorchEngine
from components.engines.torch.load import load_core

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 768, 4, 4, 2, 64, 4096

GREEDY = Sampling(temperature=0.0)
CHOICES = {
    "greedy": GREEDY,
    "random": Sampling(seed=7),
    "top_p 0.9": Sampling(seed=7, top_p=0.9),
    "top_k 20 top_p 0.8": Sampling(seed=7, top_k=20, top_p=0.8),
    "repetition 1.1": Sampling(temperature=0.0, repetition_penalty=1.1),
    "logprobs 5": Sampling(temperature=0.0, top_logprobs=5),
}


def write_model(directory: Path) -> None:
    """Write a random Qwen3 checkpoint in bfloat16."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        of_layer = {
            "self_attn.q_proj": (queries, HIDDEN),
            "self_attn.k_proj": (keys, HIDDEN),
            "self_attn.v_proj": (keys, HIDDEN),
            "self_attn.o_proj": (HIDDEN, queries),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) * 0.05 + (len(shape) == 1) for name, shape in shapes.items()}
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, directory / "model.safetensors")


def step_seconds(
    engine: TorchEngine, count: int, context: int, sampling: Sampling, steps: int, *, seed: int = 0
) -> tuple[float, float]:
    """Return CPU seconds of the step that prefills `count` prompts, and the best of `steps` decode steps."""
    rng = Random(count * context + seed)
    for key in range(count):
        prompt = [rng.randrange(VOCAB) for _ in range(context)]
        stopping = Stopping(max_tokens=steps + 1, ignore_eos=True)
        engine.add(EngineRequest(key, prompt, [], sampling, stopping, frozenset()))
    started = time.thread_time()
    engine.step()
    prefill = time.thread_time() - started
    best = float("inf")
    while engine.has_work:
        started = time.thread_time()
        engine.step()
        best = min(best, time.thread_time() - started)
    return prefill, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        worker = WorkerConfig(dtype=options.dtype, device="cpu", kv_cache_bytes=72 * 2**20, max_batch_tokens=65_536)
        engine = load_core(worker, Path(name), model="bench")
    print(f"{options.dtype}, {torch.get_num_threads()} thread, CPU time of whole steps")
    for count, context in ((1, 128), (8, 128), (32, 128), (1, 1024), (8, 1024), (32, 1024)):
        _, decode = step_seconds(engine, count, context, GREEDY, options.steps)
        print(f"decode {count:3} x {context:5}: {decode * 1e3:7.2f} ms {count / decode:8.0f} tokens/s")
    for count, length in ((1, 1000), (32, 64)):
        prefill = min(step_seconds(engine, count, length, GREEDY, 1, seed=seed)[0] for seed in range(3))
        print(f"prefill {count:2} x {length:5}: {prefill * 1e3:7.2f} ms {count * length / prefill:8.0f} tokens/s")
    for name, sampling in CHOICES.items():
        _, decode = step_seconds(engine, 32, 127, sampling, options.steps)
        print(f"decode  32 x   127: {decode * 1e3:7.2f} ms {32 / decode:8.0f} tokens/s, {name}")


if __name__ == "__main__":
    main()
