"""I/O. A worked example of a component: adds up what each tenant used.

Run it with `busway run components.meter:UsageMeter`; read it with `nats kv get BUSWAY_STATE usage.<tenant>`.
"""

import msgspec

from bus.codec import codec
from bus.component import Context
from bus.errors import Conflict, Retryable
from bus.messages.inference import UsageBatch
from bus.subjects import slug


class TenantUsage(msgspec.Struct, frozen=True, kw_only=True):
    """All that a tenant used so far. Kept as JSON, for people and other programs to read."""

    tenant: str
    num_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    last_seq: int = 0
    """Stream position of the last usage that is counted here."""

    def add(self, batch: UsageBatch, stream_seq: int) -> "TenantUsage":
        """Return the sum; a position that is counted already changes nothing."""
        if stream_seq <= self.last_seq:
            return self
        return TenantUsage(
            tenant=self.tenant,
            num_requests=self.num_requests + len(batch.requests),
            prompt_tokens=self.prompt_tokens + sum(usage.prompt_tokens for usage in batch.requests),
            output_tokens=self.output_tokens + sum(usage.output_tokens for usage in batch.requests),
            cached_tokens=self.cached_tokens + sum(usage.cached_tokens for usage in batch.requests),
            last_seq=stream_seq,
        )


class UsageMeter:
    """Counts every request exactly once, whatever dies when.

    The sum and the position that it reaches to are one value, written in one step, so a batch that is delivered again
    after a crash finds itself counted. That holds because batches come in order: a component handles one message at a
    time unless it says otherwise (`in_flight`).
    """

    subject = "usage.v1.>"
    durable = "usage-meter"

    async def handle(self, batch: UsageBatch, context: Context) -> None:
        """Add what a few requests used to their tenant's sum."""
        bucket = context.bucket()
        key = f"usage.{slug(batch.tenant)}"
        entry = await bucket.get(key)
        if entry is None or entry.value is None:
            before, revision = TenantUsage(tenant=batch.tenant), 0
        else:
            before, revision = codec(TenantUsage).decode_json(entry.value), entry.revision
        after = before.add(batch, context.stream_seq)
        if after is before:
            return
        try:
            await bucket.update(key, msgspec.json.encode(after), revision=revision)
        except Conflict as error:
            raise Retryable(f"{key} changed meanwhile", delay_s=0.0) from error
