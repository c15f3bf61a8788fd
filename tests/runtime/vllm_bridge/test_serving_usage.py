"""Every sequence's tokens are reported once under its request's tag, over vLLM's own output processor."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.types import RequestTag
from shadow_runtime.vllm_bridge.request_tag import (
    RunningRequest,
    running_request,
    tag_fields,
)
from shadow_runtime.vllm_bridge.serving_usage import observe_usage


class Ledger:
    """Adds up what is reported, and keeps every report."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int]] = []

    def observe_usage(self, tag: str, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        self.reports.append((tag, num_prompt_tokens, num_generated_tokens))

    def totals(self) -> dict[str, tuple[int, int]]:
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for tag, prompt, generated in self.reports:
            sums[tag][0] += prompt
            sums[tag][1] += generated
        return {tag: (prompt, generated) for tag, (prompt, generated) in sums.items()}


class Engine:
    """vLLM's output processor, fed as its asynchronous client feeds it, without an engine core."""

    def __init__(self) -> None:
        self.processor = OutputProcessor(None, log_stats=False)
        self.ledger = Ledger()
        observe_usage(self.processor, self.ledger)

    def add(self, name: str, prompt_len: int, tag: str | None, n: int = 1) -> list[str]:
        """Start a request; returns the internal ids of its sequences."""
        params = SamplingParams(
            n=n, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, max_tokens=100
        )
        if tag is not None:
            params.extra_args = tag_fields(RequestTag(tag))
        request = EngineCoreRequest(
            request_id=f"{name}-internal",
            prompt_token_ids=[1] * prompt_len,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=name,
        )
        self.last_request = request
        queue = RequestOutputCollector(params.output_kind, request.request_id)
        if n == 1:
            self.processor.add_request(request, None, None, 0, queue)
            return [request.request_id]
        parent = ParentRequest(request)
        ids = []
        for index in range(n):
            child = copy(request)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            self.processor.add_request(child, None, parent, index, queue)
            ids.append(child.request_id)
        return ids

    def generate(self, request_id: str, num_tokens: int, *, ends: bool = False) -> None:
        """One step's tokens of a sequence."""
        reason = FinishReason.LENGTH if ends else None
        output = EngineCoreOutput(request_id, [7] * num_tokens, finish_reason=reason)
        self.processor.process_outputs([output])

    def num_remembered(self) -> int:
        """Return how many sequences the observer knows."""
        return len(self.processor.add_request.__self__._running)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_a_finished_sequence_is_reported_at_its_end(engine: Engine) -> None:
    (request_id,) = engine.add("r", 5, "t1")
    engine.generate(request_id, 1)
    engine.generate(request_id, 2)
    assert engine.ledger.reports == []
    engine.generate(request_id, 1, ends=True)
    assert engine.ledger.reports == [("t1", 5, 4)]
    engine.processor.abort_requests(["r"], internal=False)
    assert engine.ledger.reports == [("t1", 5, 4)]


@pytest.mark.parametrize("internal", [False, True])
def test_an_aborted_sequence_is_reported_with_what_it_had(engine: Engine, internal: bool) -> None:
    (request_id,) = engine.add("r", 5, "t1")
    engine.generate(request_id, 3)
    aborted = engine.processor.abort_requests([request_id if internal else "r"], internal=internal)
    assert aborted == [request_id]
    assert engine.ledger.reports == [("t1", 5, 3)]
    engine.generate(request_id, 1, ends=True)  # what was under way comes late
    assert engine.ledger.reports == [("t1", 5, 3)]


def test_one_prompt_of_several_samples_is_counted_once(engine: Engine) -> None:
    ids = engine.add("r", 5, "t1", n=3)
    for number, request_id in enumerate(ids):
        engine.generate(request_id, number + 1, ends=True)
    assert sorted(engine.ledger.reports) == [("t1", 0, 2), ("t1", 0, 3), ("t1", 5, 1)]


def test_an_aborted_parent_reports_its_children(engine: Engine) -> None:
    ids = engine.add("r", 5, "t1", n=3)
    engine.generate(ids[1], 2, ends=True)
    engine.generate(ids[2], 4)
    engine.processor.abort_requests(["r-internal"], internal=True)
    assert engine.ledger.totals() == {"t1": (5, 6)}
    assert len(engine.ledger.reports) == 3
    assert engine.num_remembered() == 0


def test_untagged_requests_are_nobodys(engine: Engine) -> None:
    (request_id,) = engine.add("r", 5, None)
    engine.generate(request_id, 1, ends=True)
    assert engine.ledger.reports == []


def test_beams_are_tagged_and_their_prompt_is_counted_once(engine: Engine) -> None:
    # As vLLM's beam search does it: a request for each beam and token, in tasks of the handler, without extra_args.
    async def handle() -> None:
        running_request.set(RunningRequest(RequestTag("t1", "acme", 2.0)))
        for prompt in (0, 1):
            for step in range(3):
                await asyncio.gather(*(beam(prompt, step, number) for number in range(2)))

    async def beam(prompt: int, step: int, number: int) -> None:
        (request_id,) = engine.add(f"cmpl-1-{prompt}-{step}f-beam-{number}", 5 + step, None)
        assert engine.last_request.sampling_params.extra_args == {
            "shadow_tag": "t1",
            "shadow_tenant": "acme",
            "shadow_weight": 2.0,
        }
        await asyncio.sleep(0)
        engine.generate(request_id, 1, ends=True)

    asyncio.run(handle())
    assert engine.ledger.totals() == {"t1": (10, 12)}
    (outside,) = engine.add("r", 5, None)
    engine.generate(outside, 1, ends=True)
    assert engine.ledger.totals() == {"t1": (10, 12)}


def test_a_thousand_requests_half_aborted_leave_nothing(engine: Engine) -> None:
    choice = random.Random(0)
    running: list[tuple[str, list[str], int]] = []
    expected: dict[str, list[int]] = {}
    for number in range(1000):
        n, tag = choice.choice([1, 1, 3]), f"t{number}"
        running.append((f"r{number}", engine.add(f"r{number}", 1 + number % 7, tag, n), number))
        expected[tag] = [1 + number % 7, 0]
    choice.shuffle(running)
    for name, ids, number in running:
        for request_id in ids:
            if choice.random() < 0.8:
                engine.generate(request_id, 2)
                expected[f"t{number}"][1] += 2
        if number % 2:
            target = name if len(ids) == 1 else f"{name}-internal"
            engine.processor.abort_requests([target], internal=len(ids) > 1)
        else:
            for request_id in ids:
                engine.generate(request_id, 1, ends=True)
                expected[f"t{number}"][1] += 1
    assert engine.ledger.totals() == {tag: tuple(sums) for tag, sums in expected.items()}
    assert len(engine.ledger.reports) == sum(len(ids) for _, ids, _ in running)
    assert engine.num_remembered() == 0
    assert engine.processor.request_states == {}


def test_another_processor_is_refused() -> None:
    stranger: Any = SimpleNamespace(add_request=print)
    with pytest.raises(UnsupportedStackError):
        observe_usage(stranger, Ledger())
