"""Pure. What one key used of what it may use: buckets that refill, and a count. Times are seconds of one clock.

Every frontend counts what it lets through and what the others say that they let through: a key that is used at several
of them may get more than its limits for as long as they have not heard of each other, a tenth of a second.
"""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase

from bus.messages.keys import ApiKey, KeyUse
from frontend.errors import ModelForbidden, RateLimited

Headers = tuple[tuple[bytes, bytes], ...]
HEARD_S = 3.0
"""For how long what another frontend has in flight counts: it says so every second."""


class TokenBucket:
    """Holds `capacity` at most and refills by `rate` a second; may be overdrawn by what was used beyond an estimate."""

    __slots__ = ("_at", "_level", "_rate", "capacity")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self._rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """Return what is there."""
        self._level = min(self.capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> float:
        """Take the amount and return 0, or take nothing and return the seconds until it is there."""
        missing = amount - self.level(now)
        if missing > 0:
            return missing / self._rate
        self._level -= amount
        return 0.0

    def settle(self, charged: float, used: float) -> None:
        """Correct an earlier charge."""
        self._level += charged - used

    def full_in_s(self, now: float) -> float:
        """Return the seconds until it is full."""
        return (self.capacity - self.level(now)) / self._rate


class Account:
    """The use of one key: here, and at other frontends as far as they told."""

    def __init__(
        self, key: ApiKey, now: float, *, digest: str = "", on_use: "Callable[[Account], None] | None" = None
    ) -> None:
        """`on_use` is called when there is something new to `tell`; not for keys without limits."""
        self.key = key
        self.digest = digest
        self.num_running = 0
        """Generations in flight here."""
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self._others: dict[str, tuple[int, float]] = {}
        """Generations in flight at other frontends, and when they said so."""
        self._untold_requests = 0
        self._untold_tokens = 0.0
        if key.requests_per_s is not None:
            capacity = key.burst or max(1, math.ceil(key.requests_per_s))
            self._requests = TokenBucket(key.requests_per_s, capacity, now)
        if key.tokens_per_min is not None:
            self._tokens = TokenBucket(key.tokens_per_min / 60, key.tokens_per_min, now)
        is_limited = self._requests is not None or self._tokens is not None or key.max_concurrent is not None
        self._on_use = on_use if is_limited else None

    def tell(self) -> KeyUse:
        """Return what was used since the last call."""
        use = KeyUse(self.digest, self._untold_requests, self._untold_tokens, self.num_running)
        self._untold_requests, self._untold_tokens = 0, 0.0
        return use

    def hear(self, frontend: str, use: KeyUse, now: float) -> None:
        """Count what another frontend let through."""
        if self._requests is not None:
            self._requests.settle(0, use.requests)
        if self._tokens is not None:
            self._tokens.settle(0, use.tokens)
        self._others[frontend] = (use.running, now)

    def _running_elsewhere(self, now: float) -> int:
        if not self._others:
            return 0
        self._others = {name: note for name, note in self._others.items() if note[0] and now - note[1] < HEARD_S}
        return sum(running for running, _ in self._others.values())

    def check_model(self, model: str) -> None:
        """Raise `ModelForbidden` for a model that the key is not for."""
        if not self.may_use(model):
            raise ModelForbidden(f"This key may not use the model {model[:200]!r}.", param="model")

    def may_use(self, model: str) -> bool:
        """Say whether the key is for this model."""
        return not self.key.models or any(fnmatchcase(model, pattern) for pattern in self.key.models)

    def admit(self, now: float) -> None:
        """Count one request; raise `RateLimited` when it comes too early."""
        wait_s = 0.0 if self._requests is None else self._requests.take(1, now)
        if wait_s:
            raise RateLimited(
                f"Rate limit reached: {self.key.requests_per_s:g} requests/s. Try again in {wait_s:.3f} s.",
                delay_s=wait_s,
            )
        if self._on_use is not None:
            self._untold_requests += 1
            self._on_use(self)

    def open(self, num_generations: int, num_tokens: int, now: float) -> float:
        """Charge what generations may use at most, and return the charge; raise `RateLimited` for too much.

        More tokens than there are in a minute are charged as those of a minute: a full bucket lets anything through.
        """
        bound = self.key.max_concurrent
        if bound is not None and self.num_running + num_generations + self._running_elsewhere(now) > bound:
            raise RateLimited(f"Rate limit reached: {bound} generations at a time for this key.", delay_s=1.0)
        charge = 0.0
        if self._tokens is not None:
            charge = min(float(num_tokens), self._tokens.capacity)
            wait_s = self._tokens.take(charge, now)
            if wait_s:
                raise RateLimited(
                    f"Rate limit reached: {self.key.tokens_per_min} tokens/min; this request may take {num_tokens}. "
                    f"Try again in {wait_s:.3f} s.",
                    delay_s=wait_s,
                )
        self.num_running += num_generations
        self._use_tokens(charge)
        return charge

    def close(self, num_generations: int, charge: float, used_tokens: int) -> None:
        """Settle what `open` charged by what was used."""
        self.num_running -= num_generations
        if self._tokens is not None:
            self._tokens.settle(charge, used_tokens)
        self._use_tokens(used_tokens - charge)

    def _use_tokens(self, num_tokens: float) -> None:
        if self._on_use is not None:
            if self._tokens is not None:
                self._untold_tokens += num_tokens
            self._on_use(self)

    def headers(self, now: float) -> Headers:
        """Return `x-ratelimit-*` as OpenAI has them."""
        shown: Headers = ()
        for kind, bucket in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if bucket is not None:
                shown += (
                    (b"x-ratelimit-limit-" + kind, b"%d" % bucket.capacity),
                    (b"x-ratelimit-remaining-" + kind, b"%d" % max(0, bucket.level(now))),
                    (b"x-ratelimit-reset-" + kind, b"%dms" % math.ceil(bucket.full_in_s(now) * 1000)),
                )
        return shown
