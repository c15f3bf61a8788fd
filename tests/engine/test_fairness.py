"""Turns in a real engine: a flood does not starve a single request, and preemption changes no answer.

Runs on the CPU engine, which has no asynchronous scheduling; on a GPU (`-m gpu`) the tests run with and without it.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine_cast import Cast, build_cast
from engine_session import Answer, Row, random_prompt, sampling, shadow_engine

MAX_WAIT = 2.0
FLOOD_TOKENS = 400
STOCK_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"
STOCK_ASYNC_SCHEDULER = "vllm.v1.core.sched.async_scheduler.AsyncScheduler"
NUM_MANY = 240
# A bound in seconds says nothing on a machine that stands still for one; so the scheduler's clock ticks by steps.
CLOCKS = [
    pytest.param(0.01, id="ticks"),
    pytest.param(None, id="seconds", marks=pytest.mark.timing),
]

# A GPU engine can schedule asynchronously; the CPU platform switches it off.
SCHEDULING = [
    pytest.param(False, id="cpu"),
    pytest.param(False, id="gpu-sync", marks=pytest.mark.gpu),
    pytest.param(True, id="gpu-async", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    kinds = ("paper_implicit", "paper_implicit_two_layers", "peft_mirror")
    return build_cast("qwen3", tmp_path_factory.mktemp("fairness"), kinds=kinds, per_kind=2)


@contextmanager
def fair_engine(
    cast: Cast, num_adapters: int, *, num_slots: int, max_wait: float, is_async: bool, **args: Any
) -> Iterator[Any]:
    """Run an engine with the first adapters of the cast, few slots and this ageing bound."""
    from shadow_runtime.slots.derive import SlotOptions
    from shadow_runtime.vllm_bridge.engine_args import NamedAdapter, plan_start

    adapters = dict(list(cast.adapters.items())[:num_adapters])
    named = [NamedAdapter(name, path) for name, path in adapters.items()]
    plan = plan_start(str(cast.base), named, SlotOptions(max_resident_adapters=num_slots))
    config = dataclasses.replace(plan.config, max_adapter_wait_seconds=max_wait)
    if torch.cuda.is_available():
        # The one attention on GPUs that takes fp32, in which answers can be compared token by token.
        args |= {"attention_backend": "FLEX_ATTENTION", "gpu_memory_utilization": 0.3}
    with shadow_engine(
        cast.base, adapters, config=config, async_scheduling=is_async, **args
    ) as llm:
        yield llm


class Traffic:
    """Requests that are added to an engine while it is stepped, and what came back.

    Args:
        llm: the engine.
        step_seconds: what a step takes by the clock that the turns are measured with; None for real time.
    """

    def __init__(self, llm: Any, step_seconds: float | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self.answers: dict[str, Answer] = {}
        self.first_token_at: dict[str, float] = {}
        self._llm = llm
        self._engine = llm.llm.llm_engine
        self._num_steps, self._step_seconds = 0, step_seconds
        if step_seconds is not None:
            self.scheduler._turns._clock = self.now

    def now(self) -> float:
        """Return the clock's seconds."""
        if self._step_seconds is None:
            return time.monotonic()
        return self._step_seconds * self._num_steps

    @property
    def scheduler(self) -> Any:
        """The engine core's scheduler; it lives in this process."""
        return self._engine.engine_core.engine_core.scheduler

    def add(self, name: str, row: Row, num_tokens: int) -> None:
        """A request arrives."""
        self.rows[name] = row
        request = None if row.adapter is None else self._llm.adapters[row.adapter].request
        params = sampling(num_tokens, logprobs=None)
        prompt = {"prompt_token_ids": list(row.prompt)}
        self._engine.add_request(name, prompt, params, lora_request=request)

    def step(self) -> None:
        """Step the engine once."""
        outputs = self._engine.step()
        self._num_steps += 1
        for output in outputs:
            self.first_token_at.setdefault(output.request_id, self.now())
            if output.finished:
                self.answers[output.request_id] = Answer.of(output)

    def step_until(self, condition: Any, within_seconds: float) -> None:
        """Step until something holds or the time is over."""
        end = time.monotonic() + within_seconds
        while not condition() and time.monotonic() < end and self._engine.has_unfinished_requests():
            self.step()

    def abort(self, names: list[str]) -> None:
        """Clients go away."""
        self._engine.abort_request(names)

    def preemptions(self) -> int:
        """Preemptions of the requests that are not finished."""
        return sum(r.num_preemptions for r in self.scheduler.requests.values())


def flood(traffic: Traffic, adapter: str) -> list[str]:
    """Add 256 requests of 400 tokens for sixteen seats: 6,400 steps."""
    names = [f"flood-{number}" for number in range(256)]
    for number, name in enumerate(names):
        traffic.add(name, Row(adapter, random_prompt(8, seed=number)), FLOOD_TOKENS)
    for _ in range(20):
        traffic.step()
    return names


def wait_of_a_second_adapter(
    traffic: Traffic, cast: Cast, *, within_seconds: float
) -> float | None:
    """Return the seconds from the arrival of one request to its first token; None if it is not there in time."""
    second = list(cast.adapters)[1]
    added_at = traffic.now()
    traffic.add("single", Row(second, random_prompt(8, seed=1000)), 8)
    traffic.step_until(lambda: "single" in traffic.first_token_at, within_seconds)
    first = traffic.first_token_at.get("single")
    return None if first is None else first - added_at


@pytest.mark.parametrize("step_seconds", CLOCKS)
@pytest.mark.parametrize("is_async", SCHEDULING)
def test_a_flood_does_not_starve_a_single_request_and_no_answer_changes(
    cast: Cast, is_async: bool, step_seconds: float | None
) -> None:
    with fair_engine(
        cast, 2, num_slots=1, max_wait=MAX_WAIT, is_async=is_async, max_num_seqs=16
    ) as llm:
        traffic = Traffic(llm, step_seconds)
        names = flood(traffic, next(iter(cast.adapters)))
        wait = wait_of_a_second_adapter(traffic, cast, within_seconds=30)
        assert wait is not None
        assert wait < MAX_WAIT
        assert traffic.preemptions() > 0
        started = [name for name in names if name in traffic.first_token_at]
        traffic.abort([name for name in names if name not in traffic.first_token_at])
        traffic.step_until(lambda: False, 120)
        assert set(traffic.answers) == {"single", *started}
        assert len(started) >= 16
        for name, answer in traffic.answers.items():
            assert len(answer.tokens) == (8 if name == "single" else FLOOD_TOKENS)
            cast.oracle.check_tokens(traffic.rows[name], answer)


@pytest.mark.parametrize("is_async", SCHEDULING)
def test_stock_scheduling_starves_it(
    cast: Cast, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the test: the same flood with vLLM's own class."""
    from shadow_runtime.vllm_bridge import engine_args

    stock = STOCK_ASYNC_SCHEDULER if is_async else STOCK_SCHEDULER
    monkeypatch.setattr(engine_args, "SCHEDULER_FACTORY", stock)
    with fair_engine(
        cast, 2, num_slots=1, max_wait=MAX_WAIT, is_async=is_async, max_num_seqs=16
    ) as llm:
        traffic = Traffic(llm)
        names = flood(traffic, next(iter(cast.adapters)))
        assert wait_of_a_second_adapter(traffic, cast, within_seconds=2 * MAX_WAIT) is None
        traffic.abort([*names, "single"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_async", SCHEDULING)
def test_no_answer_changes_through_hundreds_of_preemptions(
    cast: Cast, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six adapters and the base on two slots, with a bound of a few steps: turns end in the middle of most requests."""
    from shadow_runtime.vllm_bridge.scheduler import ShadowAsyncScheduler, ShadowScheduler

    num_preempted = 0
    for cls in (ShadowScheduler, ShadowAsyncScheduler):
        preempt = cls._preempt_request

        def count(self: Any, *args: Any, _preempt: Any = preempt, **kwargs: Any) -> None:
            nonlocal num_preempted
            num_preempted += 1
            _preempt(self, *args, **kwargs)

        monkeypatch.setattr(cls, "_preempt_request", count)
    rng = random.Random(0)
    with fair_engine(cast, 6, num_slots=2, max_wait=0.05, is_async=is_async) as llm:
        traffic = Traffic(llm)
        assert type(traffic.scheduler) is (ShadowAsyncScheduler if is_async else ShadowScheduler)
        lengths = {}
        for number in range(NUM_MANY):
            adapter = rng.choice([None, *cast.adapters])
            name = f"many-{number}"
            lengths[name] = rng.randint(1, 24)
            row = Row(adapter, random_prompt(rng.randint(1, 80), seed=number))
            traffic.add(name, row, lengths[name])
            if number % 4 == 0:
                traffic.step()
        traffic.step_until(lambda: False, 600)
    assert num_preempted > NUM_MANY
    assert {name: len(answer.tokens) for name, answer in traffic.answers.items()} == lengths
    for name, answer in traffic.answers.items():
        cast.oracle.check_tokens(traffic.rows[name], answer)
