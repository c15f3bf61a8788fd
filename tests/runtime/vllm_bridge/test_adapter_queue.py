"""The queue with lanes: vLLM's own order when all lanes are open, and nothing of closed lanes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue

from shadow_runtime.vllm_bridge.adapter_queue import BASE_LANE, AdapterQueue, lane_of

POLICIES = list(SchedulingPolicy)


@dataclass(frozen=True)
class Lora:
    lora_int_id: int


@dataclass(frozen=True, eq=False)
class Request:
    request_id: str
    lora_request: Lora | None
    priority: int = 0

    def __lt__(self, other: Request) -> bool:
        return (self.priority, self.request_id) < (other.priority, other.request_id)


def make_request(number: int, adapter: int, priority: int = 0) -> Request:
    return Request(f"r{number:04}", Lora(adapter) if adapter else None, priority)


def drain(queue: AdapterQueue) -> list[str]:
    popped = []
    while queue:
        request = queue.peek_request()
        assert queue.pop_request() is request
        popped.append(request.request_id)
    return popped


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "prepend", "prepend_many", "pop", "remove", "remove_many"]),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=60,
)


@pytest.mark.parametrize("policy", POLICIES)
@given(events=EVENTS)
def test_with_all_lanes_open_the_order_is_vllms(policy, events):
    queue, stock = AdapterQueue(policy), create_request_queue(policy)
    for number, (kind, adapter, priority) in enumerate(events):
        request = make_request(number, adapter, priority)
        waiting = list(stock)
        if kind == "add":
            queue.add_request(request), stock.add_request(request)
        elif kind == "prepend":
            queue.prepend_request(request), stock.prepend_request(request)
        elif kind == "prepend_many":
            several = [request, make_request(1000 + number, priority, adapter)]
            queue.prepend_requests(several), stock.prepend_requests(several)
        elif waiting and kind == "pop":
            assert queue.pop_request() is stock.pop_request()
        elif waiting and kind == "remove":
            queue.remove_request(waiting[-1]), stock.remove_request(waiting[-1])
        elif kind == "remove_many":
            queue.remove_requests({request, *waiting[::2]}), stock.remove_requests(waiting[::2])
        assert (list(queue), len(queue), bool(queue)) == (list(stock), len(stock), bool(stock))
    assert drain(queue) == [stock.pop_request().request_id for _ in range(len(stock))]


@pytest.mark.parametrize("policy", POLICIES)
def test_closed_lanes_are_not_seen_but_counted(policy):
    queue = AdapterQueue(policy)
    for number, adapter in enumerate([1, 2, BASE_LANE, 1, 3]):
        queue.add_request(make_request(number, adapter))
    queue.restrict(frozenset({3}))
    assert drain(queue) == ["r0002", "r0004"]
    assert (len(queue), bool(queue), len(list(queue))) == (3, False, 3)
    with pytest.raises(IndexError):
        queue.peek_request()
    with pytest.raises(IndexError):
        queue.pop_request()
    queue.open_all()
    assert drain(queue) == ["r0000", "r0001", "r0003"]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_first_request_of_a_starting_lane_goes_before_all_others(policy):
    queue = AdapterQueue(policy)
    for number, adapter in enumerate([1, BASE_LANE, 2, 2]):
        queue.add_request(make_request(number, adapter))
    queue.restrict(frozenset({1, 2}), starting={2})
    assert drain(queue) == ["r0002", "r0000", "r0001", "r0003"]


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_of_a_lane(policy):
    queue = AdapterQueue(policy)
    for number, adapter in enumerate([1, 2, 1]):
        queue.add_request(make_request(number, adapter))
    assert {r.request_id for r in queue.requests_of(1)} == {"r0000", "r0002"}
    assert not list(queue.requests_of(7))


def test_lanes():
    assert lane_of(make_request(0, 5)) == 5
    assert lane_of(make_request(0, 0)) == BASE_LANE
    queue = AdapterQueue(SchedulingPolicy.FCFS)
    assert queue.is_open(5)
    queue.restrict(frozenset({6}))
    assert (queue.is_open(5), queue.is_open(6), queue.is_open(BASE_LANE)) == (False, True, True)
