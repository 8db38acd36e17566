"""A tenant's sum counts each position of the stream once."""

from bus.messages.inference import RequestUsage, UsageBatch
from components.meter import TenantUsage


def usage(*output_tokens: int) -> UsageBatch:
    requests = [
        RequestUsage(
            request_id="r",
            model="m",
            tenant="acme",
            prompt_tokens=3,
            output_tokens=count,
            cached_tokens=1,
            finish_reason="stop",
            finished_at=0.0,
        )
        for count in output_tokens
    ]
    return UsageBatch(tenant="acme", requests=requests)


def test_usages_add_up() -> None:
    total = TenantUsage(tenant="acme").add(usage(5), 4).add(usage(6, 7), 9)
    assert total == TenantUsage(
        tenant="acme", num_requests=3, prompt_tokens=9, output_tokens=18, cached_tokens=3, last_seq=9
    )


def test_a_position_counts_once() -> None:
    once = TenantUsage(tenant="acme").add(usage(5), 4)
    assert once.add(usage(5), 4) is once
    assert once.add(usage(7), 3) is once
