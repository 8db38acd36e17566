"""I/O. What both doors do with a request: prepare it, hand it to the dispatcher, wait for its end."""

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec

from bus.config import FrontendConfig
from bus.errors import BuswayError, InvalidRequest
from frontend.auth.identity import caller, salt_of
from frontend.auth.limits import Account
from frontend.deltas import Dialect
from frontend.dispatch import Dispatcher
from frontend.grammar import has_grammar
from frontend.hints import NOTHING_GIVEN, Given, merge
from frontend.joint import Sink
from frontend.model import ServedModel
from frontend.models import Models
from frontend.openai.body import BodyDecoder, ChatBody, CompletionBody
from frontend.plan import Plan, make_plan, with_hints
from frontend.preprocess import Defaults, render_chat
from frontend.request import Output, Request

IN_THREAD_FROM_BYTES = 12 * 2**10
"""What is larger (about 2,000 words) is decoded and tokenized in a thread: the loop belongs to the tokens of others."""

MAX_COMPILERS = 2
"""Grammars that are compiled at a time; others wait. One of a small schema can take as long as a hundred prompts."""
MAX_CHARGED = 4096
"""Output tokens that a caller with limits is charged before a request runs, at most: few use what they may."""

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B", bound=msgspec.Struct)


class WaitedSink(Protocol):
    """A sink that somebody waits for."""

    @property
    def error(self) -> BuswayError | None: ...
    def wait(self) -> Awaitable[None]: ...


class AnswerSink(Sink, WaitedSink, Protocol):
    """Takes an answer, and is waited for."""


class Intake:
    """The way in, the same for all doors."""

    def __init__(self, config: FrontendConfig, models: Models, dispatcher: Dispatcher) -> None:
        self.config = config
        self.models = models
        self.dispatcher = dispatcher
        self.compilers = anyio.CapacityLimiter(MAX_COMPILERS)

    async def decode(self, decoder: BodyDecoder[B], data: bytes) -> tuple[B, tuple[str, ...]]:
        """Return a body and the names in it that are unknown here; raise `InvalidRequest` for those, if so configured,
        and what `BodyDecoder.decode` raises."""
        if len(data) < IN_THREAD_FROM_BYTES:
            body, unknown = decoder.decode(data)
        else:
            body, unknown = await anyio.to_thread.run_sync(decoder.decode, data)
        if unknown:
            self.check_known(unknown)
        return body, unknown

    def check_known(self, unknown: Sequence[str]) -> None:
        """Raise `InvalidRequest` for what a body asks for that is not known here, if so configured."""
        if unknown and self.config.strict_params:
            raise InvalidRequest(f"Unrecognized request argument supplied: {unknown[0][:200]}", param=unknown[0][:200])

    def find_model(self, name: str) -> ServedModel:
        """Return the model of that name; raise `InvalidRequest` for none, else as `Models.find`."""
        if not name:
            raise InvalidRequest("You must provide a model parameter.", param="model")
        account = caller.get().account
        if account is not None:
            account.check_model(name)
        return self.models.find(name)

    async def prepare(
        self,
        num_bytes: int,
        body: ChatBody | CompletionBody,
        model: ServedModel,
        *,
        tenant: str = "",
        hints: Given = NOTHING_GIVEN,
        lowers_bound: bool = False,
    ) -> Plan:
        """Say what a body of that size asks for, with `hints` from outside of it; raise what the client is to be told.

        The tenant is that of the caller, unless another one is named. `lowers_bound`: as in `Defaults`.
        """
        identity = caller.get()
        seed = random.getrandbits(63)
        defaults = Defaults(self.config.default_max_tokens, seed, tenant or identity.tenant, lowers_bound)
        if num_bytes < IN_THREAD_FROM_BYTES and not has_grammar(body):
            plan = make_plan(body, model, defaults)
        else:
            limiter = self.compilers if has_grammar(body) else None
            plan = await anyio.to_thread.run_sync(make_plan, body, model, defaults, limiter=limiter)
        salt = salt_of(tenant) if tenant else identity.cache_salt
        merged = merge(body, hints)
        if salt or merged is not NOTHING_GIVEN:
            plan = with_hints(plan, merged, salt, time.time())
        return plan

    async def count_prompt(self, num_bytes: int, body: ChatBody) -> int:
        """Return the tokens of a conversation, rendered as for an answer; also of one that is too long for that."""
        model = self.find_model(body.model)

        def count(given: ChatBody) -> int:
            return model.count_tokens(render_chat(given, model))

        return await off_loop(num_bytes, count, body)

    async def answer(self, request_id: str, plan: Plan, dialect: Dialect, sink: AnswerSink, *, is_stream: bool) -> None:
        """Have a plan carried out and answered into the sink; raise as `run`."""
        make = plan.streams if is_stream else plan.answers
        outputs = make(dialect, plan.facts(request_id, time.time()), sink)
        await self.run(open_requests(request_id, plan, outputs), sink)

    def run(self, requests: Sequence[Request], sink: WaitedSink) -> Awaitable[None]:
        """Have the choices served; return when their sink is done, raise the error that ended it before its first byte.

        When the caller is cancelled, so are they. A caller with limits is charged; raises `RateLimited`.
        """
        account = caller.get().account
        return self._serve(requests, sink) if account is None else self._charge(account, requests, sink)

    async def _charge(self, account: Account, requests: Sequence[Request], sink: WaitedSink) -> None:
        bound = 0
        for each in requests:
            bound += each.generation.num_prompt_tokens + min(MAX_CHARGED, each.generation.stopping.max_tokens)
        charge = account.open(len(requests), bound, time.monotonic())
        try:
            await self._serve(requests, sink)
        finally:
            used = [each.generation.num_prompt_tokens + each.num_tokens for each in requests if each.worker]
            account.close(len(requests), charge, sum(used))

    async def _serve(self, requests: Sequence[Request], sink: WaitedSink) -> None:
        try:
            for request in requests:
                try:
                    self.dispatcher.submit(request)
                except BuswayError as error:
                    # The first choices may be on their way to the client already: then it is told there.
                    request.output.fail(error)
            await sink.wait()
        finally:
            self.cancel(requests)
        if sink.error is not None:
            raise sink.error

    def cancel(self, requests: Sequence[Request]) -> None:
        """Nobody wants these any more; those that have ended stay as they are."""
        for request in requests:
            if request.is_live:
                self.dispatcher.cancel(request)


def open_requests(request_id: str, plan: Plan, outputs: Sequence[Output]) -> list[Request]:
    """Return a request for each choice: the first has the id, the others add their number to it."""
    return [
        Request(f"{request_id}-{number}" if number else request_id, generation, output)
        for number, (generation, output) in enumerate(zip(plan.generations, outputs, strict=True))
    ]


async def off_loop(num_bytes: int, function: Callable[[A], T], argument: A) -> T:
    """Call the function, in a thread if what it works on is large."""
    if num_bytes < IN_THREAD_FROM_BYTES:
        return function(argument)
    return await anyio.to_thread.run_sync(function, argument)
