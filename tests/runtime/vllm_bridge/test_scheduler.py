"""Under pipeline parallelism the adapters of all running requests count, not those scheduled in the same step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shadow_runtime.vllm_bridge import scheduler
from shadow_runtime.vllm_bridge.scheduler import (
    ShadowAsyncScheduler,
    ShadowScheduler,
    make_scheduler,
)


def request(adapter: int | None) -> SimpleNamespace:
    lora = None if adapter is None else SimpleNamespace(lora_int_id=adapter)
    return SimpleNamespace(lora_request=lora)


class Stock:
    """What of vLLM's scheduler matters here: a step asks for every waiting request whether it may run."""

    def __init__(self, running: list[int | None], max_loras: int) -> None:
        self.running = [request(adapter) for adapter in running]
        self.lora_config = SimpleNamespace(max_loras=max_loras)
        self.blocked: set[int] = set()

    def schedule(self, waiting: list[int | None]) -> list[bool]:
        return [self._handle_blocked_waiting_request(request(adapter)) for adapter in waiting]

    def _handle_blocked_waiting_request(self, waiting: SimpleNamespace) -> bool:
        lora = waiting.lora_request
        return lora is None or lora.lora_int_id not in self.blocked


class Counting(scheduler._CountsRunningAdapters, Stock):
    pass


@pytest.mark.parametrize(
    ("running", "waiting", "admitted"),
    [
        ([], [1, 2, 3], [True, True, False]),
        ([1, 2], [3, 1, 2, None], [False, True, True, True]),
        ([1, 1, None], [2, 3, 2], [True, False, True]),
        ([None, None], [None, 4, 5, 6, 4], [True, True, True, False, True]),
        # More adapters than the limit are running already: nothing new, and what runs goes on.
        ([1, 2, 3], [4, 3], [False, True]),
    ],
)
def test_admission(running, waiting, admitted):
    assert Counting(running, max_loras=2).schedule(waiting) == admitted


def test_each_step_counts_anew():
    counting = Counting([1, 2], max_loras=2)
    assert counting.schedule([3]) == [False]
    counting.running = [request(1)]
    assert counting.schedule([3]) == [True]


def test_what_vllm_holds_back_stays_held_back_and_takes_no_place():
    counting = Counting([1], max_loras=2)
    counting.blocked = {2}
    assert counting.schedule([2, 3]) == [False, True]


@pytest.mark.parametrize(
    ("is_async", "expected"), [(False, ShadowScheduler), (True, ShadowAsyncScheduler)]
)
def test_the_class_follows_the_engine(monkeypatch, is_async, expected):
    for cls in (ShadowScheduler, ShadowAsyncScheduler):
        monkeypatch.setattr(cls, "__init__", lambda self, **_: None)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async))
    assert type(make_scheduler(vllm_config=config)) is expected
