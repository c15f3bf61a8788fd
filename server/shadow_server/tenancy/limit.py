"""One tenant's requests against its quotas.

Runs in: API process. Pure; the clock is an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from shadow_server.tenancy.bucket import TokenBucket
from shadow_server.tenancy.quota import NO_QUOTAS, TenantQuotas
from shadow_server.tenancy.refusal import Rate, RateUnit, RefusalError


class QuotaUse(NamedTuple):
    """How much of one quota a tenant uses now.

    Attributes:
        quota: its name in the tenants file.
        used: requests or tokens; a minute's are counted down evenly as they come back.
        limit: the quota.
    """

    quota: str
    used: float
    limit: int


class TenantLimits:
    """What a tenant is using now.

    Invariant: `num_requests` counts the requests between `enter` and `leave`; it is never negative.
    Failure: a refusal takes nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quotas = NO_QUOTAS
        self._requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.num_requests = 0
        self.weight = 1.0

    def apply(self, quotas: TenantQuotas) -> None:
        """Take over the tenant's quotas as they are now; what was used stays used."""
        if quotas is self._quotas:
            return
        self._quotas = quotas
        self._requests = self._changed(
            self._requests, quotas.requests_per_minute, quotas.request_burst
        )
        self.tokens = self._changed(self.tokens, quotas.tokens_per_minute)

    def check(self, slot_wait_seconds: float) -> None:
        """Raise RefusalError when one more request is over a quota.

        Args:
            slot_wait_seconds: guess of when one of the tenant's requests will end.
        """
        most = self._quotas.max_concurrent_requests
        if most is not None and self.num_requests >= most:
            raise self.refusal(f"At most {most} requests at once are allowed", slot_wait_seconds)
        # The request will need tokens, how many only its body tells.
        for bucket, unit in ((self._requests, "requests"), (self.tokens, "tokens")):
            if bucket is not None and (wait := bucket.seconds_until(1)) > 0:
                raise self.refusal(f"{_limit_text(bucket, unit)} is reached", wait)

    def enter(self) -> None:
        """Count a request that `check` let pass."""
        self.num_requests += 1
        if self._requests is not None:
            self._requests.charge(1)

    def leave(self) -> None:
        """Uncount a request."""
        self.num_requests -= 1

    def take_tokens(self, num_tokens: int) -> None:
        """Take a request's tokens in advance; raises RefusalError when they are not there."""
        if self.tokens is None or self.tokens.try_take(num_tokens):
            return
        wait, limit = self.tokens.seconds_until(num_tokens), self.tokens.limit
        if num_tokens > limit:
            text = f"The request may take {num_tokens} tokens, more than the {limit} of a minute"
        else:
            text = f"The limit of {limit} tokens a minute is reached: {num_tokens} were asked for"
        raise self.refusal(text, wait)

    def refusal(self, message: str, wait_seconds: float) -> RefusalError:
        """Return the refusal of a request that is over a quota."""
        return RefusalError("rate_limit_exceeded", message, wait_seconds, self.rates())

    def rates(self) -> tuple[Rate, ...]:
        """Return where the tenant stands with each of its rates."""
        found = []
        if self._requests is not None:
            found.append(_rate("requests", self._requests))
        if self.tokens is not None:
            found.append(_rate("tokens", self.tokens))
        return tuple(found)

    def uses(self) -> list[QuotaUse]:
        """Return what is used of each quota of requests. May be called on any thread, and is one change off at most."""
        found = []
        if (most := self._quotas.max_concurrent_requests) is not None:
            found.append(QuotaUse("max_concurrent_requests", self.num_requests, most))
        if (requests := self._requests) is not None:
            found.append(QuotaUse("requests_per_minute", requests.peek_used(), requests.limit))
        if (tokens := self.tokens) is not None:
            found.append(QuotaUse("tokens_per_minute", tokens.peek_used(), tokens.limit))
        return found

    def _changed(
        self, bucket: TokenBucket | None, limit: int | None, burst: int | None = None
    ) -> TokenBucket | None:
        if limit is None:
            return None
        if bucket is None:
            return TokenBucket(limit, self._clock, burst=burst)
        bucket.set_limit(limit, burst)
        return bucket


def _limit_text(bucket: TokenBucket, unit: str) -> str:
    burst = f" with a burst of {bucket.burst}" if bucket.burst < bucket.limit else ""
    return f"The limit of {bucket.limit} {unit} a minute{burst}"


def _rate(unit: RateUnit, bucket: TokenBucket) -> Rate:
    return Rate(unit, bucket.limit, bucket.remaining, bucket.seconds_until_full())
