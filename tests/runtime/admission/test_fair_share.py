"""Turns of adapters on too few slots: states one by one, then whole contentions on a simulated engine."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_runtime.admission import Decision, Demand, FairShare
from shadow_runtime.admission.fair_share import DRAIN_FRACTION, PREEMPT_FRACTION
from slot_simulation import Lane, SlotSimulation

QUANTUM = 100
MAX_WAIT = 10.0


class Desk:
    """A policy on a clock that the test moves."""

    def __init__(self, num_slots: int = 1) -> None:
        self.now = 0.0
        self.policy = FairShare(num_slots, QUANTUM, MAX_WAIT, lambda: self.now)

    def decide(self, *demands: Demand, may_preempt: bool = True) -> Decision:
        decision = self.policy.decide(demands, lambda _: may_preempt)
        self.policy.check_integrity()
        assert not decision.preempted & decision.open
        assert decision.starting <= decision.open
        return decision


def runs(
    adapter: int, *, num_waiting: int = 1, tokens: int = 0, weight: float = 1.0, running: int = 1
) -> Demand:
    return Demand(adapter, weight, running, tokens, num_waiting)


def waits(adapter: int, *, weight: float = 1.0, num_waiting: int = 1) -> Demand:
    return Demand(adapter, weight, 0, 0, num_waiting)


def test_who_waits_gets_a_free_slot_at_once_and_first():
    decision = Desk(num_slots=2).decide(runs(1), waits(2), waits(3))
    assert decision == Decision(frozenset({1, 2}), frozenset({2}), frozenset())


def test_a_holder_keeps_its_turn_while_its_credit_lasts():
    desk = Desk()
    assert desk.decide(runs(1), waits(2)).open == {1}
    desk.policy.charge(1, QUANTUM - 1)
    assert desk.decide(runs(1), waits(2)).open == {1}


def test_a_holder_drains_when_its_credit_is_used_up_and_the_slot_changes_when_it_ends():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    desk.policy.charge(1, QUANTUM)
    assert desk.decide(runs(1), waits(2)) == Decision(frozenset(), frozenset(), frozenset())
    assert desk.decide(waits(1), waits(2)).open == {2}


def test_what_ran_before_the_contention_is_part_of_the_turn():
    assert Desk().decide(runs(1, tokens=QUANTUM), waits(2)).open == set()


def test_a_holder_with_no_waiting_requests_leaves_its_slot_to_others():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    assert desk.decide(waits(2)).open == {2}


def test_no_more_holders_drain_than_adapters_wait():
    desk = Desk(num_slots=3)
    demands = (runs(1), runs(2), runs(3), waits(4))
    desk.decide(*demands)
    for adapter, used in ((1, 1.0), (2, 1.9), (3, 1.5)):
        desk.policy.charge(adapter, int(used * QUANTUM))
    assert desk.decide(*demands).open == {1, 3}


def test_a_draining_holder_opens_again_when_nobody_waits_any_more():
    desk = Desk(num_slots=2)
    desk.decide(runs(1, tokens=QUANTUM), runs(2), waits(3))
    # The third goes on having a request, but none that could start.
    idle = Demand(3, 1.0, 0, 0, 0)
    assert desk.decide(runs(1), runs(2), idle).open == {1, 2}


def test_a_holder_of_few_requests_makes_room_for_a_crowd():
    desk = Desk(num_slots=2)
    few, many = runs(1, running=1, num_waiting=1), runs(2, running=2, num_waiting=1)
    assert desk.decide(few, many, waits(3, num_waiting=5)).open == {1, 2}
    assert desk.decide(few, many, waits(3, num_waiting=6)).open == {2}


def test_each_crowd_drives_one_holder_out_and_a_turn_that_ends_anyway_counts():
    desk = Desk(num_slots=3)
    holders = (runs(1), runs(2), runs(3, tokens=QUANTUM))
    assert desk.decide(*holders, waits(4, num_waiting=9)).open == {1, 2}
    both = (waits(4, num_waiting=9), waits(5, num_waiting=9))
    assert len(desk.decide(*holders, *both).open) == 1


def test_a_crowd_that_has_had_its_share_drives_nobody_out():
    desk = Desk()
    assert desk.decide(waits(1, num_waiting=9), waits(2)).open == {1}
    desk.policy.charge(1, QUANTUM)
    desk.decide(runs(1, running=9), waits(2))
    assert desk.decide(waits(2), waits(1, num_waiting=9)).open == {2}
    assert desk.decide(runs(2), waits(1, num_waiting=9)).open == {2}


def test_a_debt_of_more_than_two_rounds_ends_the_turn_and_is_paid_in_later_rounds():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    desk.policy.charge(1, 3 * QUANTUM)
    assert not desk.decide(runs(1), waits(2)).preempted
    desk.policy.charge(1, QUANTUM)
    assert desk.decide(runs(1), waits(2)) == Decision(
        frozenset({2}), frozenset({2}), frozenset({1})
    )
    opened = []
    for _ in range(5):
        desk.policy.charge(2, QUANTUM)
        opened.append(desk.decide(waits(1), runs(2)).open)
    # Adapter 1 has credit again in the fourth round from here; until then adapter 2 goes on.
    assert opened == [{2}, {2}, {2}, {2}, set()]


def test_close_to_the_deadline_holders_drain_and_at_it_they_are_preempted():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    desk.now = DRAIN_FRACTION * MAX_WAIT - 0.01
    assert desk.decide(runs(1), waits(2)).open == {1}
    desk.now = DRAIN_FRACTION * MAX_WAIT
    assert desk.decide(runs(1), waits(2)) == Decision(frozenset(), frozenset(), frozenset())
    desk.now = PREEMPT_FRACTION * MAX_WAIT
    assert desk.decide(runs(1), waits(2)) == Decision(
        frozenset({2}), frozenset({2}), frozenset({1})
    )


def test_a_turn_without_progress_is_not_cut():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    desk.now = 2 * MAX_WAIT
    assert not desk.decide(runs(1), waits(2), may_preempt=False).preempted
    assert desk.decide(runs(1), waits(2)).preempted == {1}


def test_the_most_over_served_is_preempted():
    desk = Desk(num_slots=3)
    demands = (runs(1), runs(2), runs(3, weight=0.5), waits(4))
    desk.decide(*demands)
    # Adapter 3 has the least credit left, adapter 2 the least for its weight.
    for adapter, used in ((1, 10), (2, 30), (3, 10)):
        desk.policy.charge(adapter, used)
    desk.now = PREEMPT_FRACTION * MAX_WAIT
    assert desk.decide(*demands).preempted == {2}


def test_a_preempted_adapter_waits_no_longer_than_the_bound_for_its_next_turn():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    desk.now = PREEMPT_FRACTION * MAX_WAIT
    desk.decide(runs(1), waits(2))
    desk.now += PREEMPT_FRACTION * MAX_WAIT
    assert desk.decide(waits(1), runs(2)) == Decision(
        frozenset({1}), frozenset({1}), frozenset({2})
    )


def test_nobody_is_preempted_and_started_in_one_step():
    desk = Desk()
    demands = (runs(1), waits(2), waits(3))
    desk.decide(*demands)
    # Those who wait are deep in debt and not aged yet, the one that is preempted has credit left.
    desk.policy.charge(2, 50 * QUANTUM)
    desk.policy.charge(3, 50 * QUANTUM)
    desk.now = PREEMPT_FRACTION * MAX_WAIT / 2
    decision = desk.decide(*demands)
    assert (decision.preempted, decision.open) == ({1}, {2})


def test_a_contentions_credits_are_forgotten_when_it_is_over():
    desk = Desk()
    desk.decide(runs(1), waits(2))
    desk.policy.charge(1, 50 * QUANTUM)
    desk.policy.reset()
    assert desk.decide(runs(1), waits(2)).open == {1}


def simulate(
    num_slots: int,
    weights: list[float],
    *,
    seconds: float,
    most_tokens: int,
    quantum: int = 1024,
    max_wait: float = 5.0,
    seed: int = 0,
) -> SlotSimulation:
    """Keep every adapter's queue filled."""
    lanes = {number: Lane(weight) for number, weight in enumerate(weights, start=1)}
    simulation = SlotSimulation(num_slots, lanes, quantum, max_wait)
    rng = random.Random(seed)
    while simulation.now < seconds:
        simulation.keep_backlog(rng, list(lanes), most_tokens)
        simulation.step()
    return simulation


def shares_by_weight(simulation: SlotSimulation) -> list[float]:
    """Return each adapter's part of all tokens, over the part that its weight is of all weights."""
    lanes = list(simulation.lanes.values())
    served, weights = sum(lane.served for lane in lanes), sum(lane.weight for lane in lanes)
    return [(lane.served / served) / (lane.weight / weights) for lane in lanes]


# Weights of at most one slot's worth each: an adapter cannot use more than the slot that it has.
LOADS = [
    pytest.param(1, [1, 1], 256, 50, id="short-requests"),
    pytest.param(1, [4, 1], 1024, 400, id="weights-on-one-slot"),
    pytest.param(2, [2, 1, 1, 1], 4096, 2000, id="quantum-longer-than-the-bound"),
    pytest.param(2, [3, 1, 1, 1, 1, 1], 1024, 2000, id="long-requests"),
    pytest.param(8, [1] * 16, 1024, 200, id="twice-the-slots"),
    pytest.param(8, [2] * 4 + [1] * 12, 128, 50, id="many-rounds"),
    pytest.param(1, [3] + [1] * 9, 1024, 500, id="ten-on-one"),
]


@pytest.mark.parametrize(("num_slots", "weights", "quantum", "most_tokens"), LOADS)
def test_tokens_are_shared_by_weight_and_nobody_waits_longer_than_the_bound(
    num_slots, weights, quantum, most_tokens
):
    simulation = simulate(num_slots, weights, seconds=300, most_tokens=most_tokens, quantum=quantum)
    assert shares_by_weight(simulation) == pytest.approx([1.0] * len(weights), rel=0.1)
    assert max(lane.longest_wait for lane in simulation.lanes.values()) < 5.0
    assert simulation.num_idle_slots == 0


def tokens_per_step(num_clients: int, num_slots: int = 8, num_adapters: int = 16) -> float:
    """Return what clients with one request each, for an adapter drawn anew each time, get from a step on average."""
    lanes = {number: Lane() for number in range(num_adapters)}
    simulation = SlotSimulation(num_slots, lanes, 4096, seats_per_adapter=num_clients)
    rng, num_added, num_steps = random.Random(0), 0, 3000
    for _ in range(num_steps):
        num_open = num_added - sum(lane.num_finished for lane in lanes.values())
        for _ in range(num_clients - num_open):
            simulation.add(rng.randrange(num_adapters), rng.randint(32, 96))
            num_added += 1
        simulation.step()
    return sum(lane.served for lane in lanes.values()) / num_steps


@pytest.mark.parametrize(("num_clients", "least"), [(32, 0.58), (128, 0.45)])
def test_twice_the_adapters_keep_the_batch_filled(num_clients, least):
    """Without the rule for crowds 128 clients get 0.42."""
    assert tokens_per_step(num_clients) > least * num_clients


def test_many_adapters_on_few_slots_get_shorter_turns_within_the_bound():
    simulation = simulate(8, [1.0] * 100, seconds=60, most_tokens=2000)
    assert max(lane.longest_wait for lane in simulation.lanes.values()) < 5.0
    assert min(lane.num_preemptions for lane in simulation.lanes.values()) > 0


def test_turns_too_short_for_the_bound_still_come_to_everybody():
    """With a step of 20 ms, 40 adapters cannot all have a turn on one slot within 0.5 s; 40 such turns they can."""
    simulation = simulate(1, [1.0] * 40, seconds=120, most_tokens=40, max_wait=0.5)
    lanes = simulation.lanes.values()
    assert max(lane.longest_wait for lane in lanes) < 3 * 40 * simulation.step_seconds
    # No livelock: requests of every adapter end.
    assert min(lane.num_finished for lane in lanes) > 0


def test_a_flood_does_not_starve_a_single_request():
    lanes = {1: Lane(), 2: Lane()}
    simulation = SlotSimulation(1, lanes, 1024, 5.0)
    for _ in range(64):
        simulation.add(1, 3000)
    simulation.step()
    simulation.add(2, 10)
    while not lanes[2].num_finished:
        simulation.step()
    assert simulation.now < 5.0 + 10 * simulation.step_seconds


@settings(deadline=None, max_examples=60)
@given(
    num_slots=st.integers(1, 4),
    num_adapters=st.integers(1, 10),
    max_wait=st.floats(0.1, 5.0),
    quantum=st.integers(1, 2000),
    seed=st.integers(0, 2**32),
)
def test_any_traffic_keeps_the_invariants_and_ends(
    num_slots, num_adapters, max_wait, quantum, seed
):
    """Requests come, with prefills, and end: slots are never over-booked or idle, and all work gets done."""
    rng = random.Random(seed)
    lanes = {number: Lane(rng.choice([0.5, 1.0, 2.0])) for number in range(1, num_adapters + 1)}
    simulation = SlotSimulation(num_slots, lanes, quantum, max_wait)
    num_added = 0
    for _ in range(300):
        if rng.random() < 0.3:
            simulation.add(rng.choice(list(lanes)), rng.randint(1, 60), prefill=rng.randint(0, 3))
            num_added += 1
        simulation.step()
    for _ in range(20_000):
        if not any(lane.running or lane.waiting for lane in lanes.values()):
            break
        simulation.step()
    assert sum(lane.num_finished for lane in lanes.values()) == num_added
    assert simulation.num_idle_slots == 0
