"""I/O. What both doors do with a request: prepare it, hand it to the dispatcher, wait for its end."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol, TypeVar

import anyio.to_thread

from bus.config import FrontendConfig
from bus.errors import BuswayError
from frontend.dispatch import Dispatcher
from frontend.model import ServedModel
from frontend.models import Models
from frontend.openai.body import ChatBody, CompletionBody
from frontend.preprocess import Defaults, prepare_chat, prepare_completion
from frontend.request import Generation, Request

IN_THREAD_FROM_BYTES = 12 * 2**10
"""What is larger (about 2,000 words) is decoded and tokenized in a thread: the loop belongs to the tokens of others."""

T = TypeVar("T")
A = TypeVar("A")


class WaitedSink(Protocol):
    """A sink that somebody waits for."""

    @property
    def done(self) -> asyncio.Event: ...
    @property
    def error(self) -> BuswayError | None: ...


class Intake:
    """The way in, the same for all doors."""

    def __init__(self, config: FrontendConfig, models: Models, dispatcher: Dispatcher) -> None:
        self.config = config
        self.models = models
        self.dispatcher = dispatcher

    async def prepare(
        self, num_bytes: int, body: ChatBody | CompletionBody, model: ServedModel, *, tenant: str = "default"
    ) -> Generation:
        """Turn a body of that size into a generation; raise what the client is to be told."""
        defaults = Defaults(self.config.default_max_tokens, random.getrandbits(63), tenant)
        if isinstance(body, ChatBody):
            return await off_loop(num_bytes, lambda chat: prepare_chat(chat, model, defaults), body)
        return await off_loop(num_bytes, lambda completion: prepare_completion(completion, model, defaults), body)

    async def run(self, request: Request, sink: WaitedSink) -> None:
        """Have the request served; return when its sink is done, raise the error that ended it before its first byte.

        When the caller is cancelled, so is the request.
        """
        try:
            await self.dispatcher.submit(request)
            await sink.done.wait()
        finally:
            self.dispatcher.cancel(request)
        if sink.error is not None:
            raise sink.error


async def off_loop(num_bytes: int, function: Callable[[A], T], argument: A) -> T:
    """Call the function, in a thread if what it works on is large."""
    if num_bytes < IN_THREAD_FROM_BYTES:
        return function(argument)
    return await anyio.to_thread.run_sync(function, argument)
