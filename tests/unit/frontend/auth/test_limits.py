"""A key gets what it may use, not more, and is told when there is more."""

import pytest

from bus.messages.keys import ApiKey
from frontend.auth.limits import Account, TokenBucket
from frontend.errors import ModelForbidden, RateLimited, answer_for


def test_a_bucket_gives_what_it_holds_and_says_when_there_is_more() -> None:
    bucket = TokenBucket(2.0, 3, now=0.0)
    assert [bucket.take(1, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(1, 0.0) == 0.5
    assert bucket.take(1, 0.25) == 0.25
    assert bucket.take(1, 0.5) == 0.0
    assert bucket.level(1e9) == 3
    assert bucket.full_in_s(1e9) == 0


def test_what_was_used_beyond_its_charge_is_a_debt() -> None:
    bucket = TokenBucket(1.0, 10, now=0.0)
    assert bucket.take(10, 0.0) == 0.0
    bucket.settle(10, 15)
    assert bucket.take(1, 0.0) == 6.0


def test_requests_are_limited_with_a_time_to_come_back() -> None:
    account = Account(ApiKey(name="k", requests_per_s=0.5), now=0.0)
    account.admit(0.0)
    with pytest.raises(RateLimited) as caught:
        account.admit(0.5)
    assert caught.value.delay_s == 1.5
    answer = answer_for(caught.value)
    assert (answer.status, answer.error.code, answer.retry_after_s) == (429, "rate_limit_exceeded", 2)
    account.admit(2.0)


def test_tokens_are_charged_by_their_bound_and_settled_by_their_use() -> None:
    account = Account(ApiKey(name="k", tokens_per_min=60), now=0.0)
    charge = account.open(1, 50, 0.0)
    with pytest.raises(RateLimited):
        account.open(1, 20, 0.0)
    account.close(1, charge, 5)
    assert dict(account.headers(0.0)) == {
        b"x-ratelimit-limit-tokens": b"60",
        b"x-ratelimit-remaining-tokens": b"55",
        b"x-ratelimit-reset-tokens": b"5000ms",
    }
    account.open(1, 55, 0.0)


def test_a_request_larger_than_a_minute_waits_for_a_full_bucket_only() -> None:
    account = Account(ApiKey(name="k", tokens_per_min=60), now=0.0)
    assert account.open(1, 10**9, 0.0) == 60
    account.close(1, 60, 600)
    assert dict(account.headers(1.0))[b"x-ratelimit-remaining-tokens"] == b"0"
    with pytest.raises(RateLimited):
        account.open(1, 1, 500.0)
    account.open(1, 1, 541.5)


def test_generations_at_a_time_are_limited_choices_counted() -> None:
    account = Account(ApiKey(name="k", max_concurrent=2), now=0.0)
    charge = account.open(2, 10, 0.0)
    with pytest.raises(RateLimited):
        account.open(1, 10, 0.0)
    account.close(2, charge, 10)
    with pytest.raises(RateLimited):
        account.open(3, 10, 0.0)
    account.open(1, 10, 0.0)


def test_models_are_globs() -> None:
    account = Account(ApiKey(name="k", models=["tiny*", "org/big"]), now=0.0)
    account.check_model("tiny-2")
    account.check_model("org/big")
    for other in ("big", "Tiny", "", "org/big2"):
        with pytest.raises(ModelForbidden):
            account.check_model(other)


def test_a_key_without_limits_has_no_headers() -> None:
    assert Account(ApiKey(name="k"), now=0.0).headers(0.0) == ()


def test_frontends_share_the_limits_of_a_key() -> None:
    key = ApiKey(name="k", requests_per_s=1, burst=4, tokens_per_min=600, max_concurrent=3)
    used: set[Account] = set()
    here, there = Account(key, now=0.0, digest="d" * 64, on_use=used.add), Account(key, now=0.0)
    for _ in range(3):
        here.admit(0.0)
    charge = here.open(2, 400, 0.0)
    assert used == {here}
    there.hear("f-1", here.tell(), 0.0)
    there.admit(0.0)
    with pytest.raises(RateLimited, match="requests/s"):
        there.admit(0.0)
    with pytest.raises(RateLimited, match="3 generations"):
        there.open(2, 1, 0.0)
    with pytest.raises(RateLimited, match="tokens/min"):
        there.open(1, 300, 0.0)
    here.close(2, charge, 100)
    there.hear("f-1", here.tell(), 0.0)
    there.open(3, 500, 0.0)
    there.hear("f-1", here.tell(), 0.0)
    there.close(3, 500, 0)
    there.open(1, 500, 0.0)


def test_what_a_frontend_that_is_gone_had_in_flight_counts_for_three_seconds() -> None:
    key = ApiKey(name="k", max_concurrent=2)
    used: set[Account] = set()
    gone, here = Account(key, now=0.0, on_use=used.add), Account(key, now=0.0)
    gone.open(2, 1, 0.0)
    here.hear("f-1", gone.tell(), 0.0)
    with pytest.raises(RateLimited):
        here.open(1, 1, 2.9)
    here.open(1, 1, 3.1)


def test_a_key_without_limits_is_not_told() -> None:
    used: set[Account] = set()
    account = Account(ApiKey(name="k"), now=0.0, on_use=used.add)
    account.admit(0.0)
    account.close(1, account.open(1, 100, 0.0), 50)
    assert not used
