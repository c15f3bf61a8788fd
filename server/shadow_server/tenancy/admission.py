"""The bounded queue in front of the engine, and who may stand in it.

Runs in: API process. Pure; the clock is an argument. The engine keeps the queue itself; this counts who is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from shadow_server.tenancy.identity import Identity
from shadow_server.tenancy.limit import QuotaUse, TenantLimits
from shadow_server.tenancy.refusal import Rate, RefusalError
from shadow_server.tenancy.usage import Reservation, UsageLedger

MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
_FIRST_GUESS_SECONDS = 1.0
_SMOOTHING = 0.1


def default_max_queued(max_running: int) -> int:
    """Return the queue's bound where the operator gave none.

    Four rounds of service: with answers of some seconds that is about as long as people and proxies wait. At
    least 1024, so that the usual bursts of load generators (1,000 requests at once) get through a small engine.
    """
    return max(1024, 4 * max_running)


class Admission:
    """Admits requests until the engine and its queue are full, tenant by tenant.

    The first `max_running` requests run; the next `max_queued` wait, and each tenant has only its share of
    both together then: its weight among the weights of the tenants that have requests, and of one more
    (`newcomer_weight`). So whoever has nothing waiting finds room, however much another one sends.

    Invariants: `num_requests` is the sum over tenants and never over max_running + max_queued; every ticket
    gives back exactly what it took. Ownership: one event loop. Failure: a refusal takes nothing.
    """

    def __init__(
        self,
        max_running: int,
        max_queued: int,
        *,
        newcomer_weight: float = 0.0,
        ledger: UsageLedger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            max_running: requests that the engine runs at once. 1 or more.
            max_queued: requests beyond those. 0 or more.
            newcomer_weight: kept free for a tenant that has no requests now; 0 where there is one tenant only.
            ledger: where the engine's usage reports arrive.
            clock: seconds, never backwards.
        """
        self._max_running = max_running
        self._capacity = max_running + max_queued
        self._newcomer_weight = newcomer_weight
        self._clock = clock
        self._tenants: dict[str, TenantLimits] = {}
        self._active: dict[str, TenantLimits] = {}
        self._stay_seconds = _FIRST_GUESS_SECONDS
        self.ledger = ledger or UsageLedger()
        self.num_requests = 0

    def admit(self, identity: Identity) -> Ticket:
        """Return the request's ticket, to be released when it has ended; raises RefusalError."""
        limits = self._tenants.get(identity.tenant)
        if limits is None:
            limits = self._tenants[identity.tenant] = TenantLimits(self._clock)
        limits.weight = identity.weight
        limits.apply(identity.quotas)
        limits.check(self._slot_wait_seconds())
        self._check_room(identity.tenant, limits)
        limits.enter()
        self.num_requests += 1
        self._active[identity.tenant] = limits
        return Ticket(self, identity.tenant, limits, self._clock())

    def queue_wait_seconds(self) -> float:
        """Return about how long the queue takes to be worked off, between 1 and 30 s.

        By Little's law: n requests that stay s seconds each end at n / s a second.
        """
        num_queued = max(0, self.num_requests - self._max_running) + 1
        wait = num_queued * self._stay_seconds / max(1, self.num_requests)
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, wait))

    def leave(self, tenant: str, limits: TenantLimits, admitted_at: float) -> None:
        """Take a ticket back; tickets call this."""
        stay = max(0.0, self._clock() - admitted_at)
        self._stay_seconds += _SMOOTHING * (stay - self._stay_seconds)
        self.num_requests -= 1
        limits.leave()
        if limits.num_requests == 0:
            del self._active[tenant]

    def uses(self) -> dict[str, list[QuotaUse]]:
        """Return what every tenant that has asked so far uses of its request quotas. May be called on any thread."""
        return {tenant: limits.uses() for tenant, limits in list(self._tenants.items())}

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        counts = [limits.num_requests for limits in self._tenants.values()]
        active = sum(limits.num_requests > 0 for limits in self._tenants.values())
        if min(counts, default=0) < 0 or sum(counts) != self.num_requests:
            raise RuntimeError(f"{self.num_requests} requests, by tenant {counts}")
        if self.num_requests > self._capacity or active != len(self._active):
            raise RuntimeError(f"{self.num_requests} requests, {len(self._active)} active tenants")

    def _check_room(self, tenant: str, limits: TenantLimits) -> None:
        if self.num_requests < self._max_running:
            return
        if self.num_requests < self._capacity and limits.num_requests < self._share(tenant, limits):
            return
        wait = self.queue_wait_seconds()
        text = "The server has no room for another request; try again later"
        raise RefusalError("server_overloaded", text, wait, limits.rates())

    def _share(self, tenant: str, limits: TenantLimits) -> int:
        others = sum(each.weight for name, each in self._active.items() if name != tenant)
        total = limits.weight + others + self._newcomer_weight
        return max(1, int(self._capacity * limits.weight / total))

    def _slot_wait_seconds(self) -> float:
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, self._stay_seconds))


class Ticket:
    """One admitted request; a context manager that gives everything back once, on every way out."""

    __slots__ = (
        "_admission",
        "_admitted_at",
        "_is_open",
        "_limits",
        "_reservation",
        "_tag",
        "_tenant",
    )

    def __init__(
        self, admission: Admission, tenant: str, limits: TenantLimits, admitted_at: float
    ) -> None:
        self._admission = admission
        self._tenant = tenant
        self._limits = limits
        self._admitted_at = admitted_at
        self._is_open = True
        self._tag = ""
        self._reservation: Reservation | None = None

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def has_token_limit(self) -> bool:
        """Whether the tenant has a limit of tokens a minute."""
        return self._limits.tokens is not None

    def take_tokens(self, tag: str, num_tokens: int) -> None:
        """Take the tokens that the request may need, once; usage is reported under `tag`. Raises RefusalError."""
        bucket = self._limits.tokens
        if bucket is None:
            return
        self._limits.take_tokens(num_tokens)
        self._tag = tag
        self._reservation = self._admission.ledger.open(tag, bucket, num_tokens)

    def refusal(self, message: str) -> RefusalError:
        """Return the refusal of this request over another quota of its tenant's."""
        return self._limits.refusal(message, self._admission.queue_wait_seconds())

    def rates(self) -> tuple[Rate, ...]:
        """Return where the tenant stands with each of its rates."""
        return self._limits.rates()

    def mark_run(self) -> None:
        """The engine works or has worked on the request: what it takes is charged."""
        if self._reservation is not None:
            self._reservation.has_run = True

    def release(self) -> None:
        """Give the place and the unneeded tokens back; releasing twice is harmless."""
        if not self._is_open:
            return
        self._is_open = False
        if self._reservation is not None:
            self._admission.ledger.close(self._tag)
        self._admission.leave(self._tenant, self._limits, self._admitted_at)
