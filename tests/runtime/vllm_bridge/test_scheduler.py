"""Turns in vLLM's own scheduler objects: who starts, who is preempted, and that no answer changes by it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    # The engine's libraries warn on import.
    warnings.simplefilter("ignore")
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import RequestStatus

    from shadow_runtime.vllm_bridge.scheduler import (
        ShadowAsyncScheduler,
        ShadowScheduler,
        make_scheduler,
    )

from scheduler_rig import SchedulerRig, expected_answer, make_vllm_config
from scheduler_rig import make_scheduler as build_scheduler

pytestmark = pytest.mark.filterwarnings("ignore")

NUM_SLOTS = 2
MakeRig = Callable[..., SchedulerRig]


class Clock:
    """Seconds that pass with the steps of a rig, or as a test says."""

    def __init__(self, step_seconds: float) -> None:
        self.now = 0.0
        self.step_seconds = step_seconds

    def __call__(self) -> float:
        self.now += self.step_seconds
        return self.now


@pytest.fixture
def make_rig(library: Any, make_config: Any) -> MakeRig:
    """Return `make_rig(...)`: two slots, and a clock on which each decision takes `step_seconds`."""

    def make(
        cls: Any = make_scheduler,
        *,
        depth: int = 1,
        step_seconds: float = 0.02,
        max_wait: float = 5.0,
        quantum: int = 1024,
        num_blocks: int = 1000,
        **scheduler_args: Any,
    ) -> SchedulerRig:
        shadow = dataclasses.replace(
            make_config(max_resident_adapters=NUM_SLOTS),
            max_adapter_wait_seconds=max_wait,
            adapter_quantum_tokens=quantum,
        )
        vllm_config = make_vllm_config(library.base_dir, shadow, **scheduler_args)
        scheduler = build_scheduler(cls, vllm_config, num_blocks)
        if hasattr(scheduler, "_turns"):
            scheduler._turns._clock = Clock(step_seconds)
        return SchedulerRig(scheduler, depth)

    return make


def running_adapters(rig: SchedulerRig) -> set[int]:
    return {r.lora_request.lora_int_id for r in rig.scheduler.running if r.lora_request}


def check_answers(rig: SchedulerRig, requests: list[Any]) -> None:
    for request in requests:
        expected = expected_answer(
            request.request_id, request.num_prompt_tokens, request.max_tokens
        )
        assert rig.answers[request.request_id] == expected, request.request_id


def check_empty(rig: SchedulerRig) -> None:
    scheduler = rig.scheduler
    assert scheduler._census.num_adapters == 0
    assert not scheduler._tokens_at_preemption
    assert (len(scheduler.waiting), scheduler.waiting._lanes) == (0, {})
    assert scheduler.kv_cache_manager.usage == 0


def test_while_the_adapters_fit_every_step_is_stock_vllms(make_rig: MakeRig) -> None:
    ours, stock = make_rig(), make_rig(Scheduler)
    for rig in (ours, stock):
        for number in range(40):
            rig.add(f"r{number}", number % 3 or None, 3 + number % 9, 1 + number % 50)
    for _ in range(60):
        for rig in (ours, stock):
            rig.step()
        assert [r.request_id for r in ours.scheduler.running] == [
            r.request_id for r in stock.scheduler.running
        ]
        assert [r.request_id for r in ours.scheduler.waiting] == [
            r.request_id for r in stock.scheduler.waiting
        ]
    assert ours.answers == stock.answers
    assert not ours.scheduler._turns._accounts


def test_a_third_adapter_waits_for_one_of_two_slots_and_the_base_does_not(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    requests = [rig.add(f"r{a}", a, 10) for a in (1, 2, 3, None)]
    rig.step()
    assert running_adapters(rig) == {1, 2}
    assert requests[3].status == RequestStatus.RUNNING
    rig.run()
    assert max(map(len, rig.steps)) == NUM_SLOTS
    check_answers(rig, requests)
    check_empty(rig)


@pytest.mark.parametrize("cls", [make_scheduler, Scheduler])
def test_a_flood_of_two_adapters_starves_a_third_in_stock_vllm_only(
    make_rig: MakeRig, cls: Any
) -> None:
    rig = make_rig(cls)
    for number in range(200):
        rig.add(f"flood{number}", 1 + number % 2, 40)
    rig.step()
    rig.add("b", 3, 4)
    num_steps = 0
    while not rig.answers["b"]:
        rig.step()
        num_steps += 1
    # 5 s at 20 ms a step; in stock vLLM the whole flood of 200 x 40 tokens in 16 seats goes first.
    assert num_steps < 250 if cls is make_scheduler else num_steps > 450


def test_at_the_bound_the_flood_is_preempted_and_its_answers_stay_whole(make_rig: MakeRig) -> None:
    rig = make_rig(step_seconds=0.1, quantum=10**6)
    flood = [rig.add(f"flood{number}", 1 + number % 2, 400) for number in range(16)]
    rig.step()
    alone = rig.add("b", 3, 4)
    for _ in range(50):
        rig.step()
    assert rig.answers["b"] == expected_answer("b", 5, 4)
    victims = [r for r in flood if r.num_preemptions]
    assert {r.lora_request.lora_int_id for r in victims} in ({1}, {2})
    rig.run()
    check_answers(rig, [*flood, alone])
    check_empty(rig)


def test_the_first_request_of_a_new_turn_gets_a_seat_before_the_other_adapters_backlog(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(step_seconds=0.1, max_num_seqs=4)
    for number in range(100):
        rig.add(f"flood{number}", 1, 50)
    rig.add("two", 2, 50)
    rig.step()
    rig.add("b", 3, 4)
    for _ in range(60):
        rig.step()
    assert rig.answers["b"] == expected_answer("b", 5, 4)


@pytest.mark.parametrize(
    ("is_async", "depth"),
    [(False, 1), (False, 2), (True, 1), (True, 2), (True, 3)],
    ids=["sync", "two-stages", "async-1", "async", "async-3"],
)
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_answers_stay_whole_through_many_preemptions(
    make_rig: MakeRig, is_async: bool, depth: int, policy: str
) -> None:
    rig = make_rig(
        depth=depth, async_scheduling=is_async, policy=policy, step_seconds=1.0, max_wait=10.0
    )
    requests = [
        rig.add(f"r{n}", n % 7 or None, 20 + n % 7, 5 + n % 40, priority=n % 3) for n in range(120)
    ]
    rig.run()
    assert sum(r.num_preemptions for r in requests) > 100
    assert max(map(len, rig.steps)) == NUM_SLOTS
    check_answers(rig, requests)
    check_empty(rig)


def test_turns_and_vllms_own_preemption_go_together(make_rig: MakeRig) -> None:
    """24 blocks of 16 tokens for requests of up to 100: vLLM preempts for blocks, the turns for slots."""
    rig = make_rig(depth=2, async_scheduling=True, step_seconds=0.5, num_blocks=24, max_num_seqs=8)
    requests = [rig.add(f"r{n}", 1 + n % 5, 60, 40) for n in range(30)]
    rig.run()
    assert sum(r.num_preemptions for r in requests) > 30
    check_answers(rig, requests)
    check_empty(rig)


@pytest.mark.parametrize("is_async", [False, True])
def test_aborts_in_every_state_leave_nothing_behind(make_rig: MakeRig, is_async: bool) -> None:
    rig = make_rig(
        depth=2, async_scheduling=is_async, step_seconds=1.0, max_wait=10.0, max_num_seqs=6
    )
    requests = [rig.add(f"r{n}", 1 + n % 5, 30, 5 + n % 40) for n in range(60)]
    states = set()
    for number, request in enumerate(requests[::2]):
        rig.step()
        states.add(request.status)
        rig.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
        assert len(rig.scheduler.waiting) + len(rig.scheduler.running) <= 60 - number - 1
    assert {RequestStatus.RUNNING, RequestStatus.WAITING, RequestStatus.PREEMPTED} <= states
    rig.run()
    check_answers(rig, requests[1::2])
    check_empty(rig)


def test_a_pausing_engine_preempts_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(step_seconds=1.0)
    flood = [rig.add(f"flood{n}", 1 + n % 2, 30) for n in range(4)]
    rig.step()
    rig.add("b", 3, 4)
    rig.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(40):
        rig.step()
    check_answers(rig, flood)
    assert sum(r.num_preemptions for r in flood) == 0
    assert not rig.answers["b"]
    rig.scheduler.set_pause_state(PauseState.UNPAUSED)
    rig.run()
    assert rig.answers["b"] == expected_answer("b", 5, 4)


def test_a_request_whose_grammar_is_not_compiled_takes_no_turn(make_rig: MakeRig) -> None:
    rig = make_rig()
    slow = rig.add("slow", 1, 4)
    slow.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    slow.structured_output_request = SimpleNamespace(grammar=None)
    for adapter in (2, 3):
        rig.add(f"r{adapter}", adapter, 4)
    rig.step()
    assert running_adapters(rig) == {2, 3}


def test_tenants_share_by_weight_however_many_adapters_they_use(make_rig: MakeRig) -> None:
    """Three adapters of a tenant of weight 2 and one of a tenant of weight 1, all busy: a third goes to the latter."""
    rig = make_rig(quantum=64, max_wait=60.0)
    for number in range(1600):
        adapter = 1 + number % 4
        tenant = "b" if adapter == 4 else "a"
        tags = {"shadow_tenant": tenant, "shadow_weight": 1.0 if tenant == "b" else 2.0}
        rig.add(f"{tenant}{number}", adapter, 20, extra_args=tags)
    computed = dict.fromkeys("ab", 0)
    for _ in range(800):
        for request_id, num_tokens in rig.step().num_scheduled_tokens.items():
            computed[request_id[0]] += num_tokens
    # One in seven, were tenant a's weight not divided; one in four, were there no weights.
    assert computed["b"] / sum(computed.values()) == pytest.approx(1 / 3, rel=0.1)


def test_a_resumed_request_must_bring_a_new_token_before_it_is_preempted_again(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(depth=2, async_scheduling=True)
    request = rig.add("r", 1, 50)
    for _ in range(5):
        rig.step()
    scheduler = rig.scheduler
    assert scheduler._has_progressed(request)
    scheduler._preempt_adapters(frozenset({1}))
    assert scheduler.running == []
    num_tokens = request.num_output_tokens
    rig.step()
    assert request.num_output_tokens == num_tokens + 1
    progress = [(request.num_output_tokens, scheduler._has_progressed(request))]
    while len(progress) < 8:
        rig.step()
        progress.append((request.num_output_tokens, scheduler._has_progressed(request)))
    # One token was in flight; it comes after the preemption and is none of the next turn.
    assert (num_tokens + 1, False) in progress
    assert (num_tokens + 2, True) in progress
    assert all(has == (num > num_tokens + 1) for num, has in progress)


def test_preempted_requests_wait_in_the_order_in_which_they_ran(make_rig: MakeRig) -> None:
    rig = make_rig()
    requests = [rig.add(f"r{n}", 1 + n % 2, 50) for n in range(6)]
    rig.step()
    rig.scheduler._preempt_adapters(frozenset({1}))
    assert list(rig.scheduler.waiting) == requests[::2]
    assert rig.scheduler.running == requests[1::2]


def test_a_closed_adapters_request_that_holds_blocks_waits_too(make_rig: MakeRig) -> None:
    # Two stages: of the two running adapters each step has only one, so vLLM's own limit has room for another.
    rig = make_rig(depth=2)
    for adapter in (1, 2):
        rig.add(f"r{adapter}", adapter, 30)
        rig.step()
    scheduler = rig.scheduler
    holder = rig.add("holder", 3, 4)
    # As after a transfer of its prompt's blocks from another engine.
    scheduler.waiting.remove_request(holder)
    scheduler.kv_holding_waiting.add_request(holder)
    for _ in range(5):
        rig.step()
    assert running_adapters(rig) == {1, 2}
    rig.run()
    assert rig.answers["holder"] == expected_answer("holder", 5, 4)


@pytest.mark.parametrize(
    ("is_async", "expected"), [(False, ShadowScheduler), (True, ShadowAsyncScheduler)]
)
def test_the_class_follows_the_engine(make_rig: MakeRig, is_async: bool, expected: type) -> None:
    rig = make_rig(async_scheduling=is_async)
    assert type(rig.scheduler) is expected
    assert isinstance(rig.scheduler, AsyncScheduler) is is_async
