"""I/O. What a token costs in what users would take instead: `python -m tests.bench.alternatives`.

The same load goes to Busway's frontend, then to LiteLLM's proxy and to sglang-router in front of that frontend, then to
vLLM's own server on the same model. What is counted is the process that clients talk to, and nothing behind it; the two
proxies neither render nor tokenize prompts. Busway's mock engine steps every 40 ms, so that each token is an event of
its own for everybody; vLLM steps as fast as it can. Packages go to `.bench` (vLLM: about 4 GB).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bus.server import free_port
from components.bench.report import Process, Round, align, compute_cost
from components.bench.run import BenchOptions, bench
from tests.bench.busway import started_busway
from tests.bench.engine_peer import install_vllm
from tests.bench.peer import BUILTIN_MODEL, ROOT, write
from tests.bench.processes import started, wait_for_model
from tests.bench.systems import MODEL, Pace, System

PROXIES = ("litellm[proxy]==1.106.2", "sglang-router==0.3.2")
READY_S = 300.0
NAMES = ("litellm", "sglang-router", "vllm")
STEPS = Pace(
    name="40 ms",
    dynamo_speedup="0",
    busway_settings=("mock.step_base_s=0.04", "mock.prefill_token_s=0.0", "mock.decode_sequence_s=0.0"),
)
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Nothing from elsewhere, a gigabyte of memory, nothing told to anybody."""
LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "{url}/v1", api_key: none}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, nargs="*", default=list(NAMES), help="which of them, beside Busway")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="max_tokens of a request")
    parser.add_argument("--words", type=int, default=256, help="words of a prompt; every prompt is unlike the others")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each run (two a system)")
    return parser.parse_args()


def install_proxies(folder: Path) -> Path:
    """Make the proxies' environment unless it is there; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        write(f"installing {' '.join(PROXIES)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PROXIES], check=True)
    return python


@contextmanager
def started_server(
    name: str, command: Sequence[str | Path], port: int, folder: Path, *, lists: str = MODEL
) -> Iterator[System]:
    """Run a server until exit; it is ready when `/v1/models` has a model of the name `lists`."""
    log = folder / f"{name}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **QUIET}
    with started(command, environment, log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for_model(url, lists, log, [process], ready_s=READY_S)
        yield System(name=name, url=url, model=MODEL, processes=(Process(name, "frontend", process.pid),))


def litellm_command(python: Path, port: int, upstream: str, folder: Path) -> list[str | Path]:
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(model=MODEL, url=upstream))
    address: list[str | Path] = ["--host", "127.0.0.1", "--port", str(port)]
    return [python.with_name("litellm"), "--config", config, *address, "--num_workers", "1"]


def sglang_router_command(python: Path, port: int, upstream: str) -> list[str | Path]:
    address: list[str | Path] = ["--host", "127.0.0.1", "--port", str(port)]
    return [python, "-m", "sglang_router.launch_router", "--worker-urls", upstream, *address]


def vllm_command(python: Path, port: int, num_running: int) -> list[str | Path]:
    limits: list[str | Path] = ["--max-model-len", "2048", "--max-num-seqs", str(num_running), "--enforce-eager"]
    server: list[str | Path] = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", BUILTIN_MODEL]
    return [*server, "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), *limits]


def measure(system: System, args: argparse.Namespace) -> Round:
    """Return the round of the processes that clients talk to."""
    write(f"\n=== {system.name}")
    options = BenchOptions(
        url=system.url,
        model=system.model,
        streams=(args.streams,),
        duration_s=args.duration,
        max_tokens=args.tokens,
        prompt_words=args.words,
    )
    return bench(options, [process for process in system.processes if process.role == "frontend"], write)[0]


def measure_all(args: argparse.Namespace, folder: Path) -> dict[str, Round]:
    """Start one after the other, and end it; Busway's system stays while proxies stand in front of it."""
    rounds = {}
    with started_busway(BUILTIN_MODEL, STEPS, folder) as busway:
        rounds["Busway, frontend"] = measure(busway, args)
        if {"litellm", "sglang-router"} & {*args.only}:
            python = install_proxies(ROOT / ".bench" / "proxies-venv")
        if "litellm" in args.only:
            port = free_port()
            command = litellm_command(python, port, busway.url, folder)
            with started_server("litellm", command, port, folder) as proxy:
                rounds["LiteLLM, proxy"] = measure(proxy, args)
        if "sglang-router" in args.only:
            port = free_port()
            command = sglang_router_command(python, port, busway.url)
            with started_server("sglang-router", command, port, folder, lists="unknown") as proxy:
                rounds["sglang-router"] = measure(proxy, args)
    if "vllm" in args.only:
        port = free_port()
        command = vllm_command(install_vllm(ROOT / ".bench" / "vllm-venv"), port, args.streams)
        with started_server("vllm", command, port, folder) as server:
            rounds["vLLM, API server"] = measure(server, args)
    return rounds


def render(rounds: dict[str, Round]) -> str:
    """Return a table: a line for each of them."""
    rows = [["CPU us of what clients talk to", "token", "request", "extra token", "RSS MB", "TTFT p50 ms", "failed"]]
    for name, each in rounds.items():
        cost, load = compute_cost(each, name, range(len(each.long.samples))), each.long.load
        figures = [f"{cost.token_us:.1f}", f"{cost.request_us:.0f}", f"{cost.extra_token_us:.1f}"]
        times = [f"{cost.rss_bytes / 1e6:.0f}", f"{load.ttft.p50_s * 1e3:.1f}", str(load.num_failed)]
        rows.append([name, *figures, *times])
    return "\n".join(align(rows))


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="busway-bench-") as name:
        rounds = measure_all(args, Path(name))
    write("\n" + render(rounds))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
