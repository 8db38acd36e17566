"""I/O. What is written down when a request ends: one log line, the metrics, its usage."""

import time

import structlog

from bus import metrics
from bus.errors import BuswayError
from bus.messages.inference import FinishReason, RequestUsage
from frontend.errors import answer_for
from frontend.request import Request
from frontend.usage import UsagePublisher

log = structlog.get_logger()


class Books:
    """Writes each request down once."""

    def __init__(self, publisher: UsagePublisher) -> None:
        self._publisher = publisher
        self._log = log.bind()  # the proxy that `log` is looks for it anew each time

    def finished(self, request: Request, reason: FinishReason, now: float) -> None:
        """The request ended by itself."""
        self._write(request, reason, now)

    def cancelled(self, request: Request, now: float) -> None:
        """The client wanted no more."""
        self._write(request, "cancelled", now)

    def failed(self, request: Request, error: BuswayError, now: float) -> None:
        """The request was given up."""
        self._write(request, "failed", now, code=answer_for(error).error.code)

    def _write(self, request: Request, outcome: str, now: float, **details: str) -> None:
        num_prompt, duration_s = request.generation.num_prompt_tokens, now - request.opened_at
        ttft_s = None
        metrics.FRONTEND_GENERATIONS.counts[outcome] += 1
        tokens = metrics.FRONTEND_TOKENS.counts
        tokens["prompt"] += num_prompt
        tokens["cached"] += request.cached_tokens
        tokens["output"] += request.num_tokens
        metrics.FRONTEND_DURATION.observe(duration_s)
        if request.num_tokens:
            ttft_s = round(request.first_token_at - request.opened_at, 4)
            metrics.FRONTEND_TTFT.observe(ttft_s)
        self._log.info(
            "request.finished",
            request_id=request.request_id,
            model=request.generation.model,
            finish_reason=outcome,
            tokens_in=num_prompt,
            cached_tokens=request.cached_tokens,
            tokens_out=request.num_tokens,
            ttft_s=ttft_s,
            duration_s=round(duration_s, 4),
            attempts=request.attempt + 1,
            worker=request.worker,
            **({"prefilled_by": request.prefilled_by} if request.prefilled_by else {}),
            **details,
        )
        self._publisher.publish(
            RequestUsage(
                request_id=request.request_id,
                model=request.generation.model,
                tenant=request.generation.tenant,
                prompt_tokens=num_prompt,
                output_tokens=request.num_tokens,
                cached_tokens=request.cached_tokens,
                finish_reason=outcome,
                finished_at=time.time(),
            )
        )
