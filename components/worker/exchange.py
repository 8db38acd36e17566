"""I/O. What a worker does with the KV blocks of others: which jobs it hands over, which it takes over."""

from collections.abc import Callable

import msgspec
import structlog
from anyio.abc import TaskGroup

from bus.errors import BuswayError
from bus.messages.inference import FinishReason, GenerateJob, Role
from bus.protocol import Bus
from components.engines import Ended, Engine, EngineRequest
from components.engines.exchange import Fill, Held, Note
from components.transfer import Transfer
from components.worker.fetch import Fetches
from components.worker.handover import Handovers
from components.worker.peers import Peers
from components.worker.roles import hands_over
from offload.fit import Fit

log = structlog.get_logger()


class Exchange:
    """Ties handovers and fetches to a worker's roles. Until `connect`, every job is done here from its first token."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        engine: Engine,
        peers: Peers,
        *,
        roles: tuple[Role, ...],
        can_transfer: bool,
        on_handed: Callable[[int, bool], None],
        on_wanted: Callable[[], None],
    ) -> None:
        """`on_handed` as `Handovers.on_end`; `on_wanted` is called when a job comes that needs `connect`.

        Without `can_transfer` there will be none.
        """
        self.roles: frozenset[Role] = frozenset(roles)
        self.fetch_times = Fit()
        """Seconds of reads, by tokens."""
        self.handovers = Handovers(bus, worker, engine, peers, on_handed)
        self.fetches = Fetches(engine, self._note_read)
        self._worker = worker
        self._engine = engine
        self._peers = peers
        self._on_wanted = on_wanted
        self._block_size = engine.spec.block_size
        self._can_transfer = can_transfer
        self._is_connected = False
        self._tasks: TaskGroup | None = None

    def is_waiting(self, key: int) -> bool:
        """Say whether the blocks of a sequence are on their way, from here or to here: the engine can do nothing."""
        return self.handovers.is_leased(key) or self.fetches.is_awaited(key)

    def start(self, tasks: TaskGroup) -> None:
        """Let `tasks` carry what is read from others; before the first job."""
        self._tasks = tasks
        tasks.start_soon(self._keep_greeting)

    def connect(self, transfer: Transfer) -> None:
        """Use this transfer from now on."""
        self._is_connected = True
        self.handovers.connect(transfer)
        self.fetches.connect(transfer)
        self._greet()

    def prepare(self, job: GenerateJob, request: EngineRequest, lane: Role) -> EngineRequest:
        """Return what the engine is to do here for a job that came by a lane of that role."""
        if job.handover is not None:
            if self._can_fetch(job):
                self._on_wanted()
                return msgspec.structs.replace(request, fill_blocks=job.handover.num_blocks)
        elif job.task == "generate" and hands_over(lane, self.roles, self._peers.roles):
            num_tokens = len(request.output) + 1
            if self._is_connected and num_tokens < request.stopping.max_tokens:
                stopping = msgspec.structs.replace(request.stopping, max_tokens=num_tokens)
                return msgspec.structs.replace(request, stopping=stopping, hold=True)
            self._on_wanted()
        return request

    def begin(self, job: GenerateJob, request: EngineRequest) -> None:
        """The engine took the request."""
        if request.hold:
            self.handovers.expect(request.key, job)
        if job.handover is not None and self._can_fetch(job) and self._tasks is not None:
            self.fetches.start(request.key, job.request_id, job.handover, self._tasks)

    def decline(self, job: GenerateJob) -> None:
        """The job is not done here: who keeps blocks for it need not wait for the end of their lease."""
        if job.handover is not None and self._can_fetch(job) and self._tasks is not None:
            self.fetches.decline(job.handover, self._tasks)

    def fetch_early(self, job: GenerateJob, request: EngineRequest) -> None:
        """Fetch what there is of a prompt that is still being computed elsewhere, if that can be done at once."""
        if job.handover is None or not self._can_fetch(job) or self._tasks is None:
            return
        self._on_wanted()
        if not self.fetches.has_room(job.request_id):
            return
        try:
            self._engine.submit(msgspec.structs.replace(request, fill_blocks=job.handover.num_blocks, only_fill=True))
        except BuswayError as error:
            log.debug("handover.not_fetched", code=error.code)
        else:
            self.fetches.start(request.key, job.request_id, job.handover, self._tasks)

    def on_note(self, note: Note) -> None:
        """Take what the engine tells of blocks."""
        if isinstance(note, Held):
            self.handovers.on_held(note)
        elif isinstance(note, Fill):
            self.fetches.on_fill(note)

    def _can_fetch(self, job: GenerateJob) -> bool:
        return self._can_transfer and not self.is_from_here(job)

    def is_from_here(self, job: GenerateJob) -> bool:
        """Say whether a job was handed over by this worker."""
        return job.handover is not None and job.handover.worker == self._worker

    def stop(self, key: int) -> None:
        """The sequence is over here."""
        self.handovers.drop(key)
        self.fetches.stop(key)

    async def _keep_greeting(self) -> None:
        while True:
            await self._peers.wait_change()
            self._greet()

    def _greet(self) -> None:
        if self._is_connected and "prefill" in self.roles and "both" not in self.roles:
            self.handovers.greet()

    def _note_read(self, num_blocks: int, seconds: float) -> None:
        self.fetch_times.add(seconds, num_blocks * self._block_size)


def is_cut_short(job: GenerateJob, ended: Ended, num_prompt_tokens: int, max_model_len: int) -> bool:
    """Say whether a sequence ended only because the rest of it is somebody else's."""
    reason: FinishReason = ended.reason
    is_full = ended.num_tokens >= job.stopping.max_tokens or num_prompt_tokens + ended.num_tokens >= max_model_len
    return reason == "length" and not is_full and not ended.error
