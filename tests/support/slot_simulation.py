"""An engine that only counts: adapters' requests in slots, one token a request and step, on a clock of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from shadow_runtime.admission import Demand, FairShare


@dataclass(slots=True)
class Work:
    """One request: when it came, tokens still to generate, tokens it must compute before the next one."""

    arrived_at: float
    num_left: int
    prefill: int
    num_generated: int = 0


@dataclass(slots=True)
class Lane:
    """One adapter's requests and what became of them; times in seconds."""

    weight: float = 1.0
    running: list[Work] = field(default_factory=list)
    waiting: deque[Work] = field(default_factory=deque)
    served: int = 0
    num_finished: int = 0
    num_preemptions: int = 0
    wants_since: float | None = None
    longest_wait: float = 0.0
    progress: int = 0


@dataclass
class SlotSimulation:
    """Lanes by adapter id on `num_slots` slots; a step takes `step_seconds` and computes a token a running request."""

    num_slots: int
    lanes: Mapping[int, Lane]
    quantum_tokens: int = 1024
    max_wait_seconds: float = 5.0
    step_seconds: float = 0.02
    seats_per_adapter: int = 8
    now: float = 0.0
    num_idle_slots: int = 0
    policy: FairShare = field(init=False)

    def __post_init__(self) -> None:
        self.policy = FairShare(
            self.num_slots, self.quantum_tokens, self.max_wait_seconds, lambda: self.now
        )

    def add(self, adapter: int, num_tokens: int, prefill: int = 0) -> None:
        """A request arrives."""
        self.lanes[adapter].waiting.append(Work(self.now, num_tokens, prefill))

    def keep_backlog(self, rng: random.Random, adapters: list[int], most_tokens: int) -> None:
        """Top the adapters' queues up, so that each could use a slot at any time."""
        for adapter in adapters:
            lane = self.lanes[adapter]
            while len(lane.waiting) < self.seats_per_adapter:
                self.add(adapter, rng.randint(1, most_tokens))

    def step(self) -> None:
        """One decision and one step of the engine."""
        active = {a: lane for a, lane in self.lanes.items() if lane.running or lane.waiting}
        if len(active) > self.num_slots:
            opened = self._decide(active)
        else:
            self.policy.reset()
            opened = set(active)
        self._note_waits(active, opened)
        for adapter in opened:
            self._start(self.lanes[adapter])
        running = [a for a in active if self.lanes[a].running]
        if len(running) > self.num_slots:
            raise AssertionError(f"{len(running)} adapters on {self.num_slots} slots")
        self.num_idle_slots += min(len(active), self.num_slots) - len(running)
        for adapter in running:
            self._compute(adapter)
        self.now += self.step_seconds

    def _decide(self, active: Mapping[int, Lane]) -> set[int]:
        demands = [
            Demand(
                adapter=adapter,
                weight=lane.weight,
                num_running=len(lane.running),
                running_tokens=sum(work.num_generated for work in lane.running),
                num_waiting=len(lane.waiting),
            )
            for adapter, lane in active.items()
        ]
        decision = self.policy.decide(demands, lambda a: self.lanes[a].progress > 0)
        self.policy.check_integrity()
        for adapter in decision.preempted:
            lane = self.lanes[adapter]
            for work in reversed(lane.running):
                work.prefill = 1
                lane.waiting.appendleft(work)
            lane.running = []
            lane.num_preemptions += 1
        return set(decision.open)

    def _note_waits(self, active: Mapping[int, Lane], opened: set[int]) -> None:
        for adapter, lane in self.lanes.items():
            if adapter in opened or adapter not in active or not lane.waiting:
                lane.wants_since = None
            elif lane.wants_since is None:
                lane.wants_since = self.now
            else:
                lane.longest_wait = max(lane.longest_wait, self.now - lane.wants_since)

    def _start(self, lane: Lane) -> None:
        if not lane.running:
            lane.progress = 0
        while lane.waiting and len(lane.running) < self.seats_per_adapter:
            lane.running.append(lane.waiting.popleft())

    def _compute(self, adapter: int) -> None:
        lane = self.lanes[adapter]
        for work in list(lane.running):
            self.policy.charge(adapter, 1)
            lane.served += 1
            if work.prefill:
                work.prefill -= 1
                continue
            work.num_left -= 1
            work.num_generated += 1
            lane.progress += 1
            if not work.num_left:
                lane.running.remove(work)
                lane.num_finished += 1
