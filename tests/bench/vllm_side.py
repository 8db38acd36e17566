"""I/O. The vLLM half of `tests.bench.engine_peer`, run by the Python of vLLM's own environment; prints JSON."""

import json
import os
import sys
import time
from random import Random

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def main(model: str, *, count: int, prompt_tokens: int, output_tokens: int, vocab: int, rounds: int) -> None:
    """Generate greedily for `count` prompts at once, `rounds` times; report each round's CPU and wall seconds."""
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=4096,
            block_size=32,
            kv_cache_memory_bytes=64 * 2**20,
            max_num_seqs=max(count, 2),
            max_num_batched_tokens=4096,
        )
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    results = []
    for number in range(rounds + 1):
        rng = Random(number)
        cpu, wall, tokens = time.process_time(), time.perf_counter(), 0
        for key in range(count):
            prompt = [rng.randrange(vocab) for _ in range(prompt_tokens)]
            engine.add_request(f"{number}-{key}", {"prompt_token_ids": prompt}, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens += len(output.outputs[0].token_ids)
        if tokens != count * output_tokens:
            raise RuntimeError(f"{tokens} tokens instead of {count * output_tokens}")
        results.append((time.process_time() - cpu, time.perf_counter() - wall))
    print(json.dumps(results[1:]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    names = ("count", "prompt_tokens", "output_tokens", "vocab", "rounds")
    main(sys.argv[1], **{name: int(word) for name, word in zip(names, sys.argv[2:], strict=True)})
