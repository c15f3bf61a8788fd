"""Weighted deficit round-robin over the adapters that want more slots than there are, with an ageing bound.

Runs in: engine core. Imports neither torch nor vllm.

With N adapters on S slots an adapter is in one of three states while N > S:

    waiting ── gets a free slot ──> open ── credit used up, a crowd waits, a deadline nears ──> draining
       ^                             │                                                             │
       └──── preempted: a deadline is due, or too much overdrawn ──┴── its last running request ended ──┘

**Rounds.** A round gives every adapter weight x quantum tokens of credit; each token that the engine computes for it
takes one. A new round starts when nobody who waits has credit left, so over a long contention tokens are shared by
weight, and what a turn overshoots is a debt. Whoever holds a slot, is `OVERDRAFT_ROUNDS` in debt and has shown progress
is preempted when somebody with credit waits. No slot stays free while an adapter waits.

**Crowds.** A holder drains too while `CROWD_FACTOR` times its requests wait for an adapter with credit: a step costs
about the same for few requests as for many, so the slot is worth more to them.

**Ageing.** With M adapters waiting, the last gets its turn after G = ceil(M / S) changes of the guard. So that each
change has its time, the adapter at place k of the queue expects slots to move `max_wait * (1 - (k // S) / G)` after it
began to wait. At `DRAIN_FRACTION` of that time the most over-served holders stop admitting, at `PREEMPT_FRACTION` they
are preempted. Who has waited `DRAIN_FRACTION` of max_wait goes before any credit.

**Guarantee.** An adapter that waits gets a slot within max_wait, after a preemption too, provided that the preempted
turns could show progress (`may_preempt`) within max_wait / G, about max_wait * S / (N - S), and that the engine steps
several times in (1 - PREEMPT_FRACTION) * max_wait. Where turns cannot be that short (many adapters, long prefills) it
waits for at most G turns of the shortest kind, one that shows progress. An adapter that drains for so long that its own
waiting requests reach the bound begins its next turn in its slot. Requests of an open adapter wait for seats and
KV blocks as in vLLM; that is no part of the bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

DRAIN_FRACTION = 0.6
"""Part of the time to a deadline after which holders stop admitting, so that many of them end by themselves."""

PREEMPT_FRACTION = 0.8
"""Part of the time to a deadline after which holders are preempted; the rest is for steps that are under way."""

OVERDRAFT_ROUNDS = 2
"""Rounds of debt with which an adapter may still run while others with credit wait."""

MAX_SAVED_ROUNDS = 4
"""Rounds of credit that an adapter can save up while it uses less than its share."""

CROWD_FACTOR = 3
"""Times as many requests wait for an adapter as one that holds a slot has in all: then the one lets the other in."""


class Demand(NamedTuple):
    """What one adapter wants in this step.

    Attributes:
        adapter: its id.
        weight: share that it is owed; 1 is the mean.
        num_running: its running requests.
        running_tokens: tokens computed so far for its running requests; read when a contention begins.
        num_waiting: its waiting requests; 0 when none of them could start.
    """

    adapter: int
    weight: float
    num_running: int
    running_tokens: int
    num_waiting: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What a step may do.

    Attributes:
        open: adapters whose waiting requests may start.
        starting: those of them with nothing running yet; their requests go first, or the slot would idle.
        preempted: adapters whose running requests must be preempted before the step.
    """

    open: frozenset[int]
    starting: frozenset[int]
    preempted: frozenset[int]


@dataclass(slots=True, eq=False)
class _Account:
    """One adapter during a contention; `waiting_since` is when a request of it first had to wait for a turn."""

    credit: float
    weight: float
    is_busy: bool = True
    num_running: int = 0
    num_waiting: int = 0
    waiting_since: float = math.inf
    has_slot: bool = False
    is_draining: bool = False

    @property
    def level(self) -> float:
        """Credit for weight 1: who has least is the most over-served."""
        return self.credit / self.weight

    @property
    def is_running(self) -> bool:
        return self.num_running > 0

    @property
    def has_waiting(self) -> bool:
        return self.num_waiting > 0

    @property
    def size(self) -> int:
        """Its unfinished requests."""
        return self.num_running + self.num_waiting

    def begin_turn(self) -> None:
        self.has_slot, self.is_draining, self.waiting_since = True, False, math.inf

    def end_turn(self) -> None:
        self.has_slot, self.is_draining = False, False

    def wait_from(self, now: float) -> None:
        self.waiting_since = min(self.waiting_since, now)


class FairShare:
    """The turns of adapters in slots while more adapters are wanted than there are slots.

    Invariants: at most `num_slots` adapters are open or draining; what runs is one of them; no slot is free while an
    adapter waits. Engine-core thread only. Costs O(N log N) a step for N adapters: call it in a contention only, and
    `reset` when it is over.
    """

    def __init__(
        self,
        num_slots: int,
        quantum_tokens: int,
        max_wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a contention.

        Args:
            num_slots: adapters that may run at once (S).
            quantum_tokens: credit of a round for weight 1.
            max_wait_seconds: ageing bound.
            clock: monotonic seconds.
        """
        self._num_slots = num_slots
        self._quantum = quantum_tokens
        self._max_wait = max_wait_seconds
        self._clock = clock
        self._accounts: dict[int, _Account] = {}

    def reset(self) -> None:
        """Forget all credit and debt: the contention is over."""
        self._accounts.clear()

    def charge(self, adapter: int, num_tokens: int) -> None:
        """Take the price of computed tokens, recomputed ones included: they cost the others as much."""
        account = self._accounts.get(adapter)
        if account is not None:
            account.credit -= num_tokens

    def decide(self, demands: Iterable[Demand], may_preempt: Callable[[int], bool]) -> Decision:
        """Return what the coming step may do.

        Args:
            demands: one of each adapter with an unfinished request, who is busy longest in front.
            may_preempt: whether an adapter's turn has brought progress; asked of the most over-served only.
        """
        now = self._clock()
        self._update(demands, now)
        waiting = self._grant(self._waiting_in_order(now))
        preempted = self._preempt(waiting, now, may_preempt)
        if preempted:
            # To those who waited before, so that nobody is preempted and started in one step.
            self._grant(waiting)
            waiting = self._waiting_in_order(now)
        self._drain(waiting, now)
        opened = [a for a, s in self._accounts.items() if s.has_slot and not s.is_draining]
        starting = (a for a in opened if not self._accounts[a].is_running)
        return Decision(frozenset(opened), frozenset(starting), frozenset(preempted))

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant is broken."""
        num_held = sum(s.has_slot for s in self._accounts.values())
        if num_held > self._num_slots:
            raise RuntimeError(f"{num_held} adapters hold {self._num_slots} slots")
        for adapter, account in self._accounts.items():
            if num_held < self._num_slots and account.has_waiting and not account.has_slot:
                raise RuntimeError(f"adapter {adapter} waits while a slot is free")
            if (account.is_running or account.is_draining) and not account.has_slot:
                raise RuntimeError(f"adapter {adapter} runs without a slot")

    def _update(self, demands: Iterable[Demand], now: float) -> None:
        idle = set(self._accounts)
        for demand in demands:
            idle.discard(demand.adapter)
            account = self._accounts.get(demand.adapter)
            if account is None:
                credit = demand.weight * self._quantum - demand.running_tokens
                account = self._accounts[demand.adapter] = _Account(credit, demand.weight)
            account.weight, account.is_busy = demand.weight, True
            account.num_running, account.num_waiting = demand.num_running, demand.num_waiting
            self._settle(account, now)
        for adapter in idle:
            account = self._accounts[adapter]
            account.is_busy, account.num_running, account.num_waiting = False, 0, 0
            self._settle(account, now)

    @staticmethod
    def _settle(account: _Account, now: float) -> None:
        """Take a slot back that is not used any more, and keep the time since when a turn is wanted."""
        if account.is_running:
            account.has_slot = True
        elif account.is_draining or not account.has_waiting:
            account.end_turn()
        if not account.has_waiting:
            account.waiting_since = math.inf
        elif not account.has_slot or account.is_draining:
            account.wait_from(now)

    def _has_claim(self, account: _Account, now: float) -> bool:
        return account.credit > 0 or now - account.waiting_since >= DRAIN_FRACTION * self._max_wait

    def _waiting(self) -> list[_Account]:
        return [s for s in self._accounts.values() if s.has_waiting and not s.has_slot]

    def _waiting_in_order(self, now: float) -> list[_Account]:
        """Return who waits: first the aged and those with credit, then debtors; each by how long they have waited."""
        return sorted(self._waiting(), key=lambda s: (not self._has_claim(s, now), s.waiting_since))

    def _grant(self, waiting: list[_Account]) -> list[_Account]:
        """Give the free slots away; return who still waits."""
        num_free = self._num_slots - sum(s.has_slot for s in self._accounts.values())
        for account in waiting[:num_free]:
            # The aged go first without credit; only when nobody else who waits has any either, it is a new round.
            rivals = self._waiting() if account.credit <= 0 else [account]
            if all(s.credit <= 0 for s in rivals):
                self._start_rounds(min(self._rounds_to_credit(s) for s in rivals))
            account.begin_turn()
        return waiting[num_free:]

    def _rounds_to_credit(self, account: _Account) -> int:
        return math.floor(-account.level / self._quantum) + 1

    def _start_rounds(self, num_rounds: int) -> None:
        for adapter, account in list(self._accounts.items()):
            income = account.weight * self._quantum
            # Who has no requests pays its debt off, and starts afresh when it comes back.
            most = MAX_SAVED_ROUNDS * income if account.is_busy else 0.0
            account.credit = min(account.credit + num_rounds * income, max(account.credit, most))
            if not account.is_busy and account.credit >= 0:
                del self._accounts[adapter]

    def _num_due(self, waiting: list[_Account], fraction: float, now: float) -> int:
        """Return how many slots must move now for everybody to get one in time."""
        num_changes = math.ceil(len(waiting) / self._num_slots)
        if not self._may_be_due(waiting, fraction, now):
            return 0
        num_due = 0
        for place, account in enumerate(waiting):
            changes_before, index = divmod(place, self._num_slots)
            allowance = self._max_wait * (1 - changes_before / num_changes)
            if now - account.waiting_since >= fraction * allowance:
                num_due = max(num_due, index + 1)
        return num_due

    def _may_be_due(self, waiting: list[_Account], fraction: float, now: float) -> bool:
        """Whether the one that has waited longest would be due even in the last place; saves most steps the rest."""
        if not waiting:
            return False
        shortest = self._max_wait / math.ceil(len(waiting) / self._num_slots)
        return now - min(s.waiting_since for s in waiting) >= fraction * shortest

    def _running_by_level(self) -> list[tuple[int, _Account]]:
        """Return who runs, the most over-served first. Who has a slot and has not begun keeps it."""
        running = [(a, s) for a, s in self._accounts.items() if s.is_running]
        return sorted(running, key=lambda item: item[1].level)

    def _preempt(
        self, waiting: list[_Account], now: float, may_preempt: Callable[[int], bool]
    ) -> list[int]:
        if not waiting:
            return []
        holders = self._running_by_level()
        least = -OVERDRAFT_ROUNDS * self._quantum
        num_overdrawn = sum(account.level < least for _, account in holders)
        num_owed = min(num_overdrawn, sum(s.credit > 0 for s in waiting))
        num_leaving = max(num_owed, self._num_due(waiting, PREEMPT_FRACTION, now))
        preempted: list[int] = []
        for adapter, account in holders:
            if len(preempted) < num_leaving and may_preempt(adapter):
                account.end_turn()
                account.num_running, account.num_waiting = 0, account.size
                account.wait_from(now)
                preempted.append(adapter)
        return preempted

    def _drain(self, waiting: list[_Account], now: float) -> None:
        """Close as many holders as must leave, never more than wait; who drains goes on draining."""
        holders = self._holders(now)
        if waiting and not any(self._has_claim(s, now) for s in waiting):
            self._top_up(holders)
        holders.sort(key=lambda s: not s.is_draining)
        num_exhausted = sum(s.credit <= 0 for s in holders)
        num_ending = max(num_exhausted, sum(s.is_draining for s in holders))
        outnumbered = self._outnumbered(holders[num_ending:], waiting, num_ending, now)
        leaving = holders[:num_ending] + outnumbered
        num_due = self._num_due(waiting, DRAIN_FRACTION, now)
        num_leaving = min(len(waiting), max(len(leaving), num_due))
        staying = [account for account in holders if account not in leaving]
        for place, account in enumerate(leaving + staying):
            if place >= num_leaving:
                account.begin_turn()
            else:
                account.is_draining = True
                if account.has_waiting:
                    account.wait_from(now)

    def _holders(self, now: float) -> list[_Account]:
        """Return who runs and may have to leave, the most over-served first."""
        holders = []
        for _, account in self._running_by_level():
            if now - account.waiting_since >= PREEMPT_FRACTION * self._max_wait:
                # Its own waiting requests are due: its next turn begins now, in the slot that it still has.
                account.begin_turn()
            else:
                holders.append(account)
        return holders

    def _outnumbered(
        self, holders: list[_Account], waiting: list[_Account], num_ending: int, now: float
    ) -> list[_Account]:
        """Return the holders whose slots would serve many more requests of somebody who waits.

        Args:
            holders: whose turns go on.
            waiting: who waits; only those with a claim drive anybody out.
            num_ending: turns that end anyway, to the advantage of as many of the largest crowds.
            now: seconds.
        """
        crowds = sorted((s.num_waiting for s in waiting if self._has_claim(s, now)), reverse=True)
        pairs = zip(sorted(holders, key=lambda s: s.size), crowds[num_ending:], strict=False)
        return [holder for holder, crowd in pairs if crowd >= CROWD_FACTOR * holder.size]

    def _top_up(self, holders: list[_Account]) -> None:
        """Begin a round when a holder has used its credit up and nobody who waits has any."""
        if any(account.credit <= 0 for account in holders):
            self._start_rounds(1)
