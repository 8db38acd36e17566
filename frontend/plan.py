"""Pure. All that a request asks the engines for: one generation a choice, and how their texts are read."""

import functools
from collections.abc import Callable

import msgspec

from bus.errors import InvalidRequest
from frontend.deltas import AnswerFacts, Choice, Dialect, Parser
from frontend.first_call import FirstCall, ForcedCalls
from frontend.grammar import grammar_for
from frontend.hints import Given, apply
from frontend.joint import JointAnswer, JointStream, Sink, keep_best
from frontend.model import ServedModel
from frontend.openai.body import MAX_CHOICES, ChatBody, CompletionBody
from frontend.parsing import parser_for, random_characters
from frontend.pieces import Pieces
from frontend.preprocess import Defaults, prepare_chat, prepare_completion
from frontend.request import Generation, Output
from frontend.stream import DeltaStream, Reader, TextStream
from frontend.whole import DeltaAnswer, TextAnswer


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be generated: `per_prompt` choices for each prompt, in the order of the prompts."""

    model: ServedModel
    generations: list[Generation]
    per_prompt: int = 1
    num_kept: int = 1
    """Of the choices of each prompt, those that are shown."""
    new_parser: Callable[[], Parser] | None = None
    marker_tokens: frozenset[int] = frozenset()
    """Special tokens whose text the parser reads."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts)) // 4

    @property
    def prompts(self) -> list[bytes]:
        """The prompts, packed, each once."""
        return [each.prompt for each in self.generations[:: self.per_prompt]]

    def facts(self, request_id: str, now: float) -> AnswerFacts:
        """Return what its answer says about itself; `now` in unix seconds."""
        return AnswerFacts(request_id, int(now), self.model.name, self.prompt_tokens)

    def streams(self, dialect: Dialect, facts: AnswerFacts, sink: Sink) -> list[Output]:
        """Return the outputs of a streamed answer, the cheapest that will do."""
        joint = JointStream(
            sink,
            lambda usage: dialect.ending(facts, usage),
            num_choices=len(self.generations),
            per_prompt=self.per_prompt,
        )
        outputs: list[Output] = []
        for number, generation in enumerate(self.generations):
            text = None if self.new_parser or generation.needs_pieces else dialect.text_chunks(facts, number)
            if text is not None:
                outputs.append(TextStream(self.model.vocabulary, text, joint, number))
            else:
                chunks = dialect.chunks(facts, number)
                outputs.append(DeltaStream(self._reader(generation), chunks, joint, number))
        return outputs

    def answers(self, dialect: Dialect, facts: AnswerFacts, sink: Sink) -> list[Output]:
        """Return the outputs of an answer in one piece."""
        keep: Callable[[list[Choice]], list[Choice]] | None = None
        if self.num_kept < self.per_prompt:
            keep = functools.partial(keep_best, best_of=self.per_prompt, n=self.num_kept)
        joint = JointAnswer(
            sink, dialect.whole(facts), num_choices=len(self.generations), per_prompt=self.per_prompt, keep=keep
        )
        outputs: list[Output] = []
        for number, generation in enumerate(self.generations):
            if self.new_parser or generation.needs_pieces:
                outputs.append(DeltaAnswer(self._reader(generation), joint, number))
            else:
                outputs.append(TextAnswer(self.model.vocabulary, joint, number))
        return outputs

    def _reader(self, generation: Generation) -> Reader:
        pieces = Pieces(
            self.model.vocabulary,
            generation.stop_strings,
            shows_stop=generation.shows_stop,
            shown=self.marker_tokens,
            min_tokens=generation.stopping.min_tokens,
            prompt=b"" if generation.prompt_logprobs is None else generation.prompt,
        )
        return Reader(pieces, None if self.new_parser is None else self.new_parser(), self.model.count_tokens)


def with_hints(plan: Plan, given: Given, key_salt: str, now: float) -> Plan:
    """Return the plan with what the client knows of it; `now` in unix seconds."""
    replace = msgspec.structs.replace
    return replace(plan, generations=[apply(each, given, key_salt, now) for each in plan.generations])


def make_plan(body: ChatBody | CompletionBody, model: ServedModel, defaults: Defaults) -> Plan:
    """Return what a body asks for; raise `InvalidRequest` that names the field, `PromptTooLong`."""
    n = body.n or 1
    if isinstance(body, ChatBody):
        turn = prepare_chat(body, model, defaults)
        grammar = grammar_for(body, model.format, model.vocabulary, turn.prompt_tail)
        tools = body.offered
        new_parser = parser_for(model.format, turn.prompt_tail, tools, random_characters)
        if new_parser is not None and tools:
            if body.parallel_tool_calls is False or body.calls_functions:
                new_parser = _only_first_call(new_parser)
            if body.choice != "auto":
                new_parser = _forced_calls(new_parser)
        return Plan(
            model=model,
            generations=_spread(_held([turn.generation], grammar), n),
            per_prompt=n,
            num_kept=n,
            new_parser=new_parser,
            marker_tokens=model.marker_tokens,
        )
    best_of = body.best_of or n
    if best_of < n:
        raise InvalidRequest(f"'best_of' is {best_of}, below the {n} of 'n'.", param="best_of")
    if best_of > n and body.stream:
        raise InvalidRequest("'best_of' above 'n' cannot be streamed: the best is known at the end.", param="best_of")
    grammar = grammar_for(body, model.format, model.vocabulary, "")
    generations = _held(prepare_completion(body, model, defaults), grammar)
    if len(generations) * best_of > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(generations)} prompts with {best_of} choices each are more than {MAX_CHOICES} choices.", param="n"
        )
    return Plan(model=model, generations=_spread(generations, best_of), per_prompt=best_of, num_kept=n)


def _only_first_call(new_parser: Callable[[], Parser]) -> Callable[[], Parser]:
    return lambda: FirstCall(new_parser())


def _forced_calls(new_parser: Callable[[], Parser]) -> Callable[[], Parser]:
    return lambda: ForcedCalls(new_parser())


def _held(generations: list[Generation], grammar: str) -> list[Generation]:
    """Return generations that keep to a grammar, if there is one."""
    return [msgspec.structs.replace(each, grammar=grammar) for each in generations] if grammar else generations


def _spread(generations: list[Generation], count: int) -> list[Generation]:
    """Return each generation so many times, with seeds that follow each other."""
    if count == 1:
        return generations
    replace = msgspec.structs.replace
    return [
        replace(each, sampling=replace(each.sampling, seed=(each.sampling.seed + number) % 2**63))
        for each in generations
        for number in range(count)
    ]
