"""I/O (waiting only). An engine whose steps take as long as a model says and whose tokens an oracle knows."""

from collections.abc import Callable, Set
from collections.abc import Sequence as Items
from pathlib import Path

import anyio
import msgspec

from bus.config import Config, MockConfig
from bus.errors import BadConfig, EngineDied, InvalidRequest, PromptTooLong
from bus.messages.kv import KvEvent
from components.engines import Ended, EngineLoad, EngineRequest, EngineSpec, Step, StepStats, Vector
from components.engines.batching.pool import BlockPool
from components.engines.batching.scheduler import Plan
from components.engines.batching.sequence import Sequence
from components.engines.exchange import Held, Note, ignore_note
from components.engines.grammar import Grammars, GrammarState
from components.engines.mock.memory import MemoryScheduler, mock_memory
from components.engines.mock.oracle import MASK, STRIDE, mock_vector, plain_ids, prompt_seed
from components.engines.mock.timing import step_seconds


class _MockSequence(Sequence):
    """A sequence that carries the state of its oracle: `mock_token` of the next offset without the multiplication."""

    __slots__ = ("is_checked", "state")

    def __init__(
        self, request: EngineRequest, *, model: str, max_model_len: int, grammar: GrammarState | None = None
    ) -> None:
        super().__init__(request, model=model, max_model_len=max_model_len, grammar=grammar)
        self.state = prompt_seed(request.prompt) + len(request.output) * STRIDE & MASK
        self.is_checked = False


class MockEngine:
    """Implements `components.engines.Engine` without computing anything.

    Time passes by `anyio.sleep` alone, so that a clock of the event loop's own choosing drives it. Steps that take no
    time still let the event loop turn once each.
    """

    def __init__(self, config: MockConfig, *, model: str, vocab_size: int, grammars: Grammars | None = None) -> None:
        """Without `grammars`, requests that have one are refused."""
        if config.max_batch_tokens < config.max_running:
            raise BadConfig("mock.max_batch_tokens must be at least mock.max_running: one token for each sequence")
        self.spec = EngineSpec(
            name="mock",
            max_model_len=config.max_model_len,
            max_running=config.max_running,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            vocab_size=vocab_size,
        )
        self._config = config
        self._grammars = grammars
        self._model = model
        self._ids = plain_ids(vocab_size)
        self._pool = BlockPool(config.num_blocks)
        self.memory = mock_memory(model, config)
        self._scheduler = MemoryScheduler(
            self._pool,
            self.memory,
            block_size=config.block_size,
            max_running=config.max_running,
            max_batch_tokens=config.max_batch_tokens,
        )
        self._is_stepping = False
        self._aborted: set[int] = set()
        self._has_work = anyio.Event()

    def submit(self, request: EngineRequest) -> None:
        """Queue a sequence; raise `PromptTooLong` if the context or all blocks together cannot hold it.

        The first grammar takes as long as reading the model's tokenizer; raises `InvalidRequest` for an unsound one.
        """
        if request.prompt_logprobs is not None:
            raise InvalidRequest("the mock engine has no log-probabilities of prompts", param="logprobs")
        grammar: GrammarState | None = None
        if request.grammar:
            if self._grammars is None:
                raise InvalidRequest("this engine enforces no grammars", param="grammar")
            grammar = self._grammars.open(request)
        sequence = _MockSequence(request, model=self._model, max_model_len=self.spec.max_model_len, grammar=grammar)
        room = min(self.spec.max_model_len, self.spec.num_blocks * self.spec.block_size)
        if len(sequence.tokens) >= self.spec.max_model_len or sequence.max_length > room:
            raise PromptTooLong(f"{sequence.max_length} tokens do not fit: there is room for {room}", param="prompt")
        self._scheduler.add(sequence)
        self._has_work.set()

    def abort(self, key: int) -> None:
        """Forget a sequence in any state; inside a step it is only marked, the plan refers to it."""
        if self._is_stepping:
            self._aborted.add(key)
        else:
            self._scheduler.abort(key)

    def filled(self, key: int, num_blocks: int) -> None:
        """Answer a `Fill`."""
        self._scheduler.filled(key, num_blocks)
        self._has_work.set()

    def release(self, key: int) -> None:
        """Keep the blocks of a sequence with `hold` no longer."""
        self._scheduler.release(key)
        self._has_work.set()

    def pin(self, token: int, hashes: Items[int]) -> None:
        """Ask where these blocks are, and keep them."""
        self._scheduler.leases.pin(token, hashes)
        self._has_work.set()

    def unpin(self, token: int) -> None:
        """Keep what was pinned no longer."""
        self._scheduler.leases.unpin(token)
        self._has_work.set()

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._scheduler.running),
            waiting=self._scheduler.num_waiting,
            free_blocks=self._pool.num_available,
            prefill_tokens=self._scheduler.prefill_tokens,
            waiting_tokens=self._scheduler.waiting_tokens,
        )

    def take_events(self) -> list[KvEvent]:
        return self._pool.take_events()

    async def run(self, on_step: Callable[[Step], None], on_note: Callable[[Note], None] = ignore_note) -> None:
        """Step while there is work, until cancelled. A step starts when the one before it ended, not when its
        outcome was handled: handling takes no simulated time unless it takes longer than the step itself."""
        free_at = anyio.current_time()
        while True:
            plan = self._scheduler.schedule()
            is_stuck = plan.is_empty and self._scheduler.waiting and not self._scheduler.is_expecting
            self._tell(on_note, frozenset())  # who is told of a fill may answer at once
            if plan.is_empty:
                if is_stuck:
                    raise EngineDied("sequences wait, but none can be admitted to an idle engine")
                await self._has_work.wait()
                self._has_work = anyio.Event()
                free_at = anyio.current_time()
                continue
            stats = self._price(plan)
            free_at = max(free_at, anyio.current_time() - stats.duration_s) + stats.duration_s
            self._is_stepping = True
            await anyio.sleep(max(0.0, free_at - anyio.current_time()))
            self._is_stepping = False
            aborted = frozenset(self._aborted)
            step = self._finish(plan, stats)
            self._tell(on_note, aborted)
            on_step(step)

    def _tell(self, on_note: Callable[[Note], None], aborted: Set[int]) -> None:
        for note in self._scheduler.take_notes():
            if not isinstance(note, Held) or note.key not in aborted:
                on_note(note)

    def _price(self, plan: Plan) -> StepStats:
        prefill_tokens = sum(chunk.count for chunk in plan.prefill)
        kv_tokens = sum([sequence.num_computed for sequence in plan.decode])
        return StepStats(
            duration_s=step_seconds(self._config, prefill_tokens, len(plan.decode), kv_tokens),
            prefill_tokens=prefill_tokens,
            prefill_requests=len(plan.prefill),
            decode_requests=len(plan.decode),
            kv_tokens=kv_tokens,
            preemptions=plan.num_preempted,
            prefill_context=sum([chunk.context for chunk in plan.prefill]),
        )

    def _finish(self, plan: Plan, stats: StepStats) -> Step:
        sampling, cached = plan.sampling, plan.cached
        tokens = self._sample(sampling)
        outcomes = self._scheduler.finish(plan, tokens, frozenset())
        keys = [sequence.key for sequence in sampling]
        vectors = [Vector(each.key, mock_vector(each.request.prompt)) for each in sampling if each.is_embedding]
        if vectors:
            rows = [(each.key, token) for each, token in zip(sampling, tokens, strict=True) if not each.is_embedding]
            keys, tokens = [key for key, _ in rows], [token for _, token in rows]
        if self._aborted:
            for key in self._aborted:
                self._scheduler.abort(key)
            rows = [(key, token) for key, token in zip(keys, tokens, strict=True) if key not in self._aborted]
            keys, tokens = [key for key, _ in rows], [token for _, token in rows]
            outcomes = [outcome for outcome in outcomes if outcome.sequence.key not in self._aborted]
            vectors = [vector for vector in vectors if vector.key not in self._aborted]
            cached = [(key, count) for key, count in cached if key not in self._aborted]
            self._aborted.clear()
        ended = [
            Ended(
                outcome.sequence.key,
                outcome.reason,
                outcome.sequence.num_output,
                outcome.sequence.cached_tokens,
                "" if outcome.sequence.grammar is None else outcome.sequence.grammar.error,
            )
            for outcome in outcomes
        ]
        return Step(keys, tokens, ended, [], stats, vectors=vectors, cached=cached)

    def _sample(self, sampling: list[Sequence]) -> list[int]:
        first, num_ids = self._ids.start, len(self._ids)
        tokens = []
        for sequence in sampling:
            assert isinstance(sequence, _MockSequence)
            if not sequence.is_checked:
                sequence.is_checked = True
                sequence.state ^= self._scheduler.find_fault(sequence)
            state = sequence.state
            token = first + (state >> 33) % num_ids
            sequence.state = state + STRIDE & MASK
            if sequence.request.stopping.min_tokens and token in (banned := sequence.banned_ids):
                token = next(other for other in self._ids if other not in banned)
            if sequence.grammar is not None:
                allowed = sequence.grammar.allowed(sequence.banned_ids)
                token = _pick_allowed(allowed, state >> 33, sequence.request.eos_token_ids)
            tokens.append(token)
        return tokens


def _pick_allowed(mask: bytes, drawn: int, eos_token_ids: frozenset[int]) -> int:
    """Return a token that a grammar allows: the end as soon as it may come, else by chance.

    Every third is the first that is allowed: in tokenizers, those are the marks that close strings and lists.
    """
    allowed = int.from_bytes(mask, "little")
    ends = [token for token in eos_token_ids if allowed >> token & 1]
    if ends or not allowed:
        return ends[0] if ends else 0
    first_plain = max(eos_token_ids, default=0) + 1
    start = first_plain if drawn % 3 == 0 else drawn % allowed.bit_length()
    rest = allowed >> start << start or allowed
    return (rest & -rest).bit_length() - 1


class _ModelConfig(msgspec.Struct):
    vocab_size: int


def load_engine(config: Config, directory: Path, *, model: str) -> MockEngine:
    """Return an engine with the vocabulary of the model in `directory`, of which it reads config.json alone."""
    shape = msgspec.json.decode((directory / "config.json").read_bytes(), type=_ModelConfig)
    grammars = Grammars(directory / "tokenizer.json", shape.vocab_size)
    return MockEngine(config.mock, model=model, vocab_size=shape.vocab_size, grammars=grammars)
