"""I/O. Bench a running system: load at each concurrency, CPU of every process around it."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from bus.errors import NoWorker
from components.bench.cpu import read_usage
from components.bench.generator import run_load_process
from components.bench.report import Process, ProcessSample, Round, Run, render_failures, render_round
from components.bench.results import LoadOptions, LoadResult


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to bench: at each concurrency a run with `max_tokens` a request and one with a single token."""

    url: str
    model: str
    streams: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = (32, 256)
    duration_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    warmup_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    max_tokens: Annotated[int, msgspec.Meta(ge=2)] = 64
    prompt_words: Annotated[int, msgspec.Meta(ge=1)] = 256
    has_identical_prompts: bool = False
    seed: int = 0
    endpoint: Literal["chat", "completions"] = "chat"
    api_key: str = ""
    tls_ca: str = ""
    """PEM file of who signed the certificate of an https URL; empty: one of those that this machine trusts."""


def bench(options: BenchOptions, processes: Sequence[Process], write: Callable[[str], None]) -> list[Round]:
    """Load the system, hand progress and one table a concurrency to `write` (whole lines), and return the figures.

    CPU per request comes from the run with one token a request, CPU per token from the whole run over its tokens.
    What the processes do besides (heartbeats, other clients) is counted too: bench an otherwise idle system.
    Waits about `len(streams) * (warmup_s + 2 * duration_s)`. Raises NoWorker if not one request of a run succeeds,
    ProcessGone if a process ends meanwhile, BadConfig for a URL that cannot be used.
    """
    rounds = []
    for number, streams in enumerate(options.streams):
        load = LoadOptions(
            api_key=options.api_key,
            tls_ca=options.tls_ca,
            url=options.url,
            model=options.model,
            streams=streams,
            duration_s=options.duration_s,
            max_tokens=options.max_tokens,
            prompt_words=options.prompt_words,
            has_identical_prompts=options.has_identical_prompts,
            seed=options.seed + 3 * number,
            endpoint=options.endpoint,
        )
        write(f"warming up with {streams} streams for {options.warmup_s:.0f} s")
        _run_checked(msgspec.structs.replace(load, duration_s=options.warmup_s))
        write(f"{streams} streams, {options.max_tokens} tokens a request, {options.duration_s:.0f} s")
        long = _measure(msgspec.structs.replace(load, seed=load.seed + 1), processes)
        write(f"{streams} streams, 1 token a request, {options.duration_s:.0f} s")
        single = _measure(msgspec.structs.replace(load, seed=load.seed + 2, max_tokens=1), processes)
        rounds.append(Round(streams=streams, long=long, single=single))
        write("\n" + render_round(rounds[-1]) + "\n")
    return rounds


def _measure(options: LoadOptions, processes: Sequence[Process]) -> Run:
    before = [read_usage(process.pid) for process in processes]
    load = _run_checked(options)
    after = [read_usage(process.pid) for process in processes]
    samples = [
        ProcessSample(process=process, cpu_before_s=old.cpu_s, cpu_after_s=new.cpu_s, rss_bytes=new.rss_bytes)
        for process, old, new in zip(processes, before, after, strict=True)
    ]
    return Run(load=load, samples=tuple(samples))


def _run_checked(options: LoadOptions) -> LoadResult:
    load = run_load_process(options)
    if not load.num_ok:
        raise NoWorker("no request succeeded\n" + "\n".join(render_failures(load)))
    return load
