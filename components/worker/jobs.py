"""Pure. From the bytes of a job to a request that an engine can take, or to the reason why not; and of a command."""

from collections.abc import Mapping, Sequence

import msgspec

from bus.codec import Codec, codec
from bus.errors import DeadlinePassed, InvalidRequest, Malformed, PromptTooLong, UnknownModel
from bus.messages.base import unpack_u32
from bus.messages.inference import (
    Cancel,
    Command,
    Drain,
    FinishReason,
    GenerateJob,
    LatencyClass,
    SetRoles,
    deadline_by_clock,
)
from bus.subjects import slug
from components.engines import EngineRequest

CLASS_LEVELS: Mapping[LatencyClass, int] = {"interactive": 200, "standard": 0, "batch": -200}
"""Levels of priority that lie between classes: `hints.priority`, at most 100, orders within one."""
MAX_CANCELLED = 16_384
"""Tickets of one cancel message."""

_jobs: Codec[GenerateJob] = codec(GenerateJob)
_commands: Codec[Command] = Codec(Command)


def read_job(payload: bytes) -> GenerateJob:
    """Decode a job; raise `Malformed`, also for an owner to whom nothing could be published."""
    job = _jobs.decode(payload)
    _check_owner(job.frontend)
    return job


def read_command(payload: bytes) -> Command:
    """Decode a command; raise `Malformed`, also for an owner to whom nothing could be published."""
    command = _commands.decode(payload)
    if not isinstance(command, Drain | SetRoles):
        _check_owner(command.frontend)
    return command


def read_tickets(cancel: Cancel) -> Sequence[int]:
    """Return what is to be cancelled; raise `Malformed`, also for more than `MAX_CANCELLED`."""
    tickets = unpack_u32(cancel.tickets)
    if len(tickets) > MAX_CANCELLED:
        raise Malformed(f"{len(tickets)} tickets in one message: at most {MAX_CANCELLED}")
    return tickets


class Served(msgspec.Struct, frozen=True):
    """What jobs are held against."""

    model: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]


def make_request(job: GenerateJob, key: int, served: Served, now: float) -> EngineRequest:
    """Return what the engine is to do for `job`, under the worker's number `key`.

    `now` is in unix seconds. Raises `UnknownModel`, `DeadlinePassed`, `PromptTooLong` or `InvalidRequest`: an
    engine may take it for granted that every token id is inside the vocabulary.
    """
    if job.model != served.model:
        raise UnknownModel(f"this worker serves {served.model!r}, not {job.model[:80]!r}")
    deadline_at = deadline_by_clock(job, now)
    if deadline_at is not None and now >= deadline_at:
        raise DeadlinePassed(f"the deadline passed {now - deadline_at:.1f} s before a worker took the request")
    num_tokens = (len(job.prompt) + len(job.output)) // 4
    if len(job.prompt) // 4 >= served.max_model_len or num_tokens > served.max_model_len:
        raise PromptTooLong(
            f"{num_tokens} tokens leave no room for output: the context holds {served.max_model_len}", param="prompt"
        )
    try:
        prompt, output = unpack_u32(job.prompt), unpack_u32(job.output)
    except Malformed as error:
        raise InvalidRequest(str(error), param="prompt") from error
    if not prompt:
        raise InvalidRequest("the prompt holds no token", param="prompt")
    highest = max(max(ids, default=0) for ids in (prompt, output, job.stopping.stop_token_ids))
    if highest >= served.vocab_size:
        raise InvalidRequest(f"token id {highest} is outside the vocabulary of {served.vocab_size}", param="prompt")
    return EngineRequest(
        key=key,
        prompt=prompt.tolist(),
        output=output.tolist(),
        sampling=job.sampling,
        stopping=job.stopping,
        eos_token_ids=served.eos_token_ids,
        cache_salt=job.cache_salt,
        grammar=job.grammar,
        task=job.task,
        prompt_logprobs=job.prompt_logprobs,
        hints=job.hints,
        rank=job.hints.priority + CLASS_LEVELS[job.latency_class],
    )


def reason_to_end(request: EngineRequest, max_model_len: int) -> FinishReason | None:
    """Say why the tokens of earlier attempts already complete the request, None if they do not.

    A worker can die between a last token and the word that it was the last.
    """
    output, stopping = request.output, request.stopping
    if output and len(output) >= stopping.min_tokens:
        is_eos = not stopping.ignore_eos and output[-1] in request.eos_token_ids
        if is_eos or output[-1] in stopping.stop_token_ids:
            return "stop"
    is_full = len(request.prompt) + len(output) >= max_model_len
    return "length" if is_full or len(output) >= stopping.max_tokens else None


def _check_owner(frontend: str) -> None:
    if slug(frontend) != frontend:
        raise Malformed(f"frontend {frontend[:80]!r} is no subject token")
