"""Pure. The engine's core: sequences in, one step at a time, tokens out. Not thread-safe, not asynchronous."""

import time

import msgspec
import torch

from bus.errors import EngineDied, InvalidRequest, PromptTooLong
from components.engines import Ended, EngineLoad, EngineRequest, EngineSpec, PromptRows, Step, StepStats, Vector
from components.engines.batching.pool import BlockPool
from components.engines.batching.scheduler import Outcome, Plan, Scheduler
from components.engines.batching.sequence import Sequence
from components.engines.exchange import BlockMemory, Note
from components.engines.grammar import GrammarState
from components.engines.torch.batch import build_batch
from components.engines.torch.cache import KvCache
from components.engines.torch.network import Network
from components.engines.torch.rows import without_rows
from components.engines.torch.sampler import Sampled, sample
from components.engines.torch.scoring import embed_prompts, score_prompts


class TorchEngine:
    """Scheduler, network and sampler over one cache."""

    def __init__(
        self,
        network: Network,
        cache: KvCache,
        *,
        spec: EngineSpec,
        max_batch_tokens: int,
        model: str,
        memory: BlockMemory,
    ) -> None:
        """`model` goes into block hashes: only engines that serve the same name share blocks."""
        self.spec = spec
        self.memory = memory
        self.pool = BlockPool(cache.num_blocks)
        self.scheduler = Scheduler(
            self.pool, block_size=spec.block_size, max_running=spec.max_running, max_batch_tokens=max_batch_tokens
        )
        self._network = network
        self._cache = cache
        self._model = model
        self._complete: list[Outcome] = []

    @property
    def has_work(self) -> bool:
        """Say whether `step` may find anything to do."""
        return bool(self.scheduler.has_work or self._complete)

    def load(self) -> EngineLoad:
        """Return the load between two steps."""
        return EngineLoad(
            running=len(self.scheduler.running),
            waiting=self.scheduler.num_waiting,
            free_blocks=self.pool.num_available,
            prefill_tokens=self.scheduler.prefill_tokens,
            waiting_tokens=self.scheduler.waiting_tokens,
        )

    def add(self, request: EngineRequest, grammar: GrammarState | None = None) -> None:
        """Queue a sequence that `check_request` let pass; a moved one that is complete ends in the next step.

        `grammar` is in the state after the request's output.
        """
        sequence = Sequence(request, model=self._model, max_model_len=self.spec.max_model_len, grammar=grammar)
        if request.output and (reason := sequence.finish_reason()):
            self._complete.append(Outcome(sequence, reason))
        else:
            self.scheduler.add(sequence)

    def refuse(self, request: EngineRequest, error: str) -> None:
        """End a sequence in the next step, for good."""
        sequence = Sequence(request, model=self._model, max_model_len=self.spec.max_model_len)
        self._complete.append(Outcome(sequence, "abort", error))

    def abort(self, key: int) -> None:
        """Forget a sequence in any state and release its blocks; unknown keys are no error."""
        self._complete = [outcome for outcome in self._complete if outcome.sequence.key != key]
        self.scheduler.abort(key)

    def step(self) -> Step:
        """Schedule and compute one step; there must be work, and blocks for it."""
        return self.compute(self.schedule())

    def schedule(self) -> Plan:
        """Decide the next step. Sequences that are to be filled take their blocks here."""
        return self.scheduler.schedule()

    def take_notes(self) -> list[Note]:
        """Return what is to be told since the last call, once the device is through with the blocks that it names."""
        notes = self.scheduler.take_notes()
        if notes:
            self._wait_for_device()
        return notes

    def can_compute(self, plan: Plan) -> bool:
        """Say whether the step has an outcome; without one, sequences wait for blocks that others will give back.

        Raises `EngineDied` where nobody has blocks that could come back.
        """
        if not plan.is_empty or self._complete:
            return True
        if self.scheduler.waiting and not self.scheduler.is_expecting:
            raise EngineDied("sequences wait, but none can be admitted to an idle engine")
        return False

    @torch.inference_mode()
    def compute(self, plan: Plan) -> Step:
        """Compute the step that was scheduled. After an error the engine cannot be used any more.

        A sequence whose logits are not finite ends as aborted, without a token, and what it computed is forgotten:
        one prompt that overflows must not end the others, but for those that share its blocks at that moment.
        """
        started = time.perf_counter()
        sequences = plan.sampling
        cached = plan.cached
        kv_tokens = sum([sequence.num_computed + 1 for sequence in plan.decode])
        sampled, outcomes = Sampled([], frozenset(), []), self._complete
        self._complete = []
        prompts: list[PromptRows] = []
        vectors: list[Vector] = []
        if not plan.is_empty:
            batch = build_batch(plan, self._cache)
            states = self._network.forward(batch)
            sampled = sample(self._network.logits(states[batch.sampled]), sequences)
            prompts = score_prompts(plan, states, self._network)
            vectors = embed_prompts(plan, states, self._network)
            outcomes = outcomes + self.scheduler.finish(plan, sampled.tokens, sampled.broken)
            if not sequences:  # with tokens the step has ended; without, a GPU has only been told what to do
                self._wait_for_device()
        stats = StepStats(
            duration_s=time.perf_counter() - started,
            prefill_tokens=sum([chunk.count for chunk in plan.prefill]),
            prefill_requests=len(plan.prefill),
            decode_requests=len(plan.decode),
            kv_tokens=kv_tokens,
            preemptions=plan.num_preempted,
            prefill_context=sum([chunk.context for chunk in plan.prefill]),
        )
        keys = [sequence.key for sequence in sequences]
        ended = [_ended(outcome) for outcome in outcomes]
        step = Step(keys, sampled.tokens, ended, sampled.logprobs, stats, prompts, vectors, cached)
        silent = {vector.key for vector in vectors}
        if not sampled.broken:
            return without_rows(step, silent) if silent else step
        for row in sampled.broken:
            self._cache.scrub(self.pool.discard(sequences[row].blocks))
        broken = {keys[row] for row in sampled.broken}
        step = msgspec.structs.replace(step, vectors=[each for each in vectors if each.key not in broken])
        return without_rows(step, broken | silent)

    def _wait_for_device(self) -> None:
        if self._cache.blocks.is_cuda:
            torch.cuda.current_stream(self._cache.blocks.device).synchronize()


def check_request(request: EngineRequest, spec: EngineSpec) -> None:
    """Raise `PromptTooLong` or `InvalidRequest` for what the engine could not compute."""
    length = len(request.prompt) + len(request.output)
    if length > spec.max_model_len or len(request.prompt) >= spec.max_model_len:
        raise PromptTooLong(f"{length} tokens leave no room in a context of {spec.max_model_len}", param="prompt")
    if not request.prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    named = {"prompt": request.prompt, "output": request.output, "logit_bias": request.sampling.logit_bias}
    for param, ids in named.items():
        if ids and not 0 <= min(ids) <= max(ids) < spec.vocab_size:
            raise InvalidRequest(f"{param} names tokens outside 0 to {spec.vocab_size - 1}", param=param)


def _ended(outcome: Outcome) -> Ended:
    sequence = outcome.sequence
    error = sequence.grammar.error if sequence.grammar is not None else outcome.error
    return Ended(sequence.key, outcome.reason, sequence.num_output, sequence.cached_tokens, error)
