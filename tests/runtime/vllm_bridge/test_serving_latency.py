"""Latencies are passed on with their adapter, over vLLM's own statistics classes."""

from types import SimpleNamespace

import pytest
from vllm.v1.engine import FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge.serving_latency import adapter_name, observe_latency


class Recorder:
    def __init__(self):
        self.seen = []

    def observe_first_token(self, adapter, seconds):
        self.seen.append(("first", adapter, seconds))

    def observe_inter_token(self, adapter, seconds):
        self.seen.append(("inter", adapter, seconds))

    def observe_finished(self, adapter, seconds):
        self.seen.append(("finished", adapter, seconds))


def state(name, *, is_prefilling):
    stats = RequestStateStats(arrival_time=1.0)
    stats.last_token_ts = 10.0
    return SimpleNamespace(
        stats=stats,
        lora_name=name,
        is_prefilling=is_prefilling,
        external_req_id="r",
        request_id="r",
        prompt_len=3,
        max_tokens_param=5,
        num_cached_tokens=0,
        parent_req=None,
    )


def output():
    return SimpleNamespace(
        request_id="r", new_token_ids=[1], events=None, prefill_stats=None, finished=False
    )


@pytest.fixture
def processor():
    processor = OutputProcessor(None, log_stats=True)
    processor.lora_states = LoRARequestStates(log_stats=True)
    return processor


def test_each_latency_goes_to_its_adapter_with_the_engines_own_value(processor):
    recorder = Recorder()
    observe_latency(processor, recorder)
    stats = IterationStats()
    processor._update_stats_from_output(
        state("math@12345678", is_prefilling=False), output(), 10.5, stats
    )
    processor._update_stats_from_output(state(None, is_prefilling=False), output(), 10.25, stats)
    assert recorder.seen == [("inter", "math", 0.5), ("inter", None, 0.25)]
    assert stats.inter_token_latencies_iter == [0.5, 0.25]
    recorder.seen.clear()
    processor._update_stats_from_output(
        state("math@12345678", is_prefilling=True), output(), 11.0, stats
    )
    assert recorder.seen == [("first", "math", stats.time_to_first_tokens_iter[0])]
    recorder.seen.clear()
    processor._update_stats_from_finished(
        state("poet@1", is_prefilling=False), FinishReason.STOP, stats
    )
    assert recorder.seen == [("finished", "poet", stats.finished_requests[0].e2e_latency)]


def test_without_statistics_nothing_is_passed_on(processor):
    recorder = Recorder()
    observe_latency(processor, recorder)
    processor._update_stats_from_output(state("a@1", is_prefilling=True), output(), 1.0, None)
    processor._update_stats_from_finished(state("a@1", is_prefilling=True), None, None)
    assert recorder.seen == []


def test_another_processor_is_refused():
    with pytest.raises(UnsupportedStackError):
        observe_latency(SimpleNamespace(), Recorder())


@pytest.mark.parametrize(
    ("lora_name", "adapter"), [(None, None), ("math@12345678", "math"), ("math", "math")]
)
def test_adapter_name(lora_name, adapter):
    assert adapter_name(lora_name) == adapter
