"""Observations are passed on with their origin, over vLLM's own statistics classes and output processor."""

from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats, PrefillStats, SchedulerStats

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.types import RequestOrigin, RequestTag
from shadow_runtime.vllm_bridge.request_tag import tag_fields
from shadow_runtime.vllm_bridge.serving_request import (
    PROBE_PREFIX,
    RequestObserver,
)
from shadow_runtime.vllm_bridge.serving_usage import observe_usage

MATH = RequestOrigin("math", "acme")


class Recorder:
    def __init__(self):
        self.seen = []

    def observe_first_token(self, origin, seconds, queue_seconds):
        self.seen.append(("first", origin, seconds, queue_seconds))

    def observe_inter_token(self, origin, seconds):
        self.seen.append(("inter", origin, seconds))

    def observe_tokens(self, origin, num_prompt_tokens, num_generated_tokens):
        self.seen.append(("tokens", origin, num_prompt_tokens, num_generated_tokens))

    def observe_finished(self, origin, seconds):
        self.seen.append(("finished", origin, seconds))


class Engine:
    """An observed processor, fed as vLLM's asynchronous client feeds it."""

    def __init__(self, *, log_stats=True):
        self.processor = OutputProcessor(None, log_stats=log_stats)
        self.observer = RequestObserver(self.processor)
        self.observer.sink = self.recorder = Recorder()
        self.stats = IterationStats() if log_stats else None

    def add(self, name="r", lora=None, tenant="acme", arrival=1.0):
        params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.DELTA)
        if tenant is not None:
            params.extra_args = tag_fields(RequestTag(name, tenant))
        request = EngineCoreRequest(
            request_id=f"{name}-internal",
            external_req_id=name,
            prompt_token_ids=[1, 2, 3],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=arrival,
            lora_request=lora and LoRARequest("sha256:1", 1, "/nowhere", lora),
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.processor.add_request(request, None)

    def step(self, timestamp, name="r", tokens=(5,), events=None, finish=None, prefill=None):
        output = EngineCoreOutput(
            request_id=f"{name}-internal",
            new_token_ids=list(tokens),
            finish_reason=finish,
            events=events,
            prefill_stats=prefill,
        )
        self.processor.process_outputs([output], timestamp, self.stats)

    def take(self):
        seen, self.recorder.seen = self.recorder.seen, []
        return seen


def queued_and_scheduled(queued_at, scheduled_at):
    return [
        EngineCoreEvent(EngineCoreEventType.QUEUED, queued_at),
        EngineCoreEvent(EngineCoreEventType.SCHEDULED, scheduled_at),
    ]


@pytest.mark.parametrize("usage_first", [False, True])
def test_each_observation_has_its_origin_and_the_engines_own_value(usage_first):
    engine = Engine()
    if usage_first:  # the other observer of the same methods
        observe_usage(engine.processor, SimpleNamespace(observe_usage=lambda *_: None))
    engine.add(lora="math")
    engine.step(10.0, events=queued_and_scheduled(7.0, 9.5), prefill=prefill_stats(3))
    first, tokens = engine.take()
    assert first == ("first", MATH, engine.stats.time_to_first_tokens_iter[0], 2.5)
    assert tokens == ("tokens", MATH, 3, 1)
    engine.step(10.5, tokens=(6, 7))
    assert engine.take() == [("inter", MATH, 0.5), ("tokens", MATH, 0, 2)]
    engine.step(10.75, finish=FinishReason.LENGTH)
    inter, tokens, finished = engine.take()
    assert (inter, tokens) == (("inter", MATH, 0.25), ("tokens", MATH, 0, 1))
    assert finished == ("finished", MATH, engine.stats.finished_requests[0].e2e_latency)
    assert engine.stats.num_generation_tokens == 4
    assert engine.stats.prompt_token_stats.total == 3


def prefill_stats(num_prompt_tokens):
    stats = PrefillStats()
    stats.set(num_prompt_tokens, 0, 0)
    return stats


def test_base_rows_and_untagged_requests_have_the_default_origin():
    engine = Engine()
    engine.add(tenant=None)
    engine.step(10.0)
    assert engine.take()[1] == ("tokens", RequestOrigin(None, "default"), 0, 1)


def test_a_probe_is_proof_of_life_and_in_no_statistics():
    engine = Engine()
    assert engine.observer.last_output_at is None
    probe = f"{PROBE_PREFIX}1"
    engine.add(probe, tenant=None)
    assert engine.observer.sequences() == []
    engine.step(10.0, probe, finish=FinishReason.LENGTH)
    assert engine.observer.last_output_at is not None
    assert engine.take() == []
    assert engine.stats.time_to_first_tokens_iter == []
    assert engine.stats.finished_requests == []
    assert engine.stats.num_generation_tokens == 0


def test_a_step_without_output_is_a_sign_of_life_once_there_was_one():
    engine = Engine()
    engine.add()
    engine.processor.update_scheduler_stats(SchedulerStats())
    assert engine.observer.last_output_at is None
    engine.step(10.0)
    output_at = engine.observer.last_output_at
    engine.processor.update_scheduler_stats(None)
    assert engine.observer.last_output_at == output_at
    engine.processor.update_scheduler_stats(SchedulerStats())
    assert engine.observer.last_output_at > output_at


def test_without_statistics_nothing_is_passed_on_but_life_is_seen():
    engine = Engine(log_stats=False)
    engine.add()
    assert engine.observer.sequences()[0].age_seconds == 0
    engine.step(1.0, finish=FinishReason.STOP)
    assert engine.take() == []
    assert engine.observer.last_output_at is not None


def test_sequences_wait_until_their_first_token():
    engine = Engine()
    engine.add(lora="math")
    engine.add("other")
    engine.step(10.0)
    states = {state.origin: state for state in engine.observer.sequences()}
    assert states[RequestOrigin(None, "acme")].is_waiting
    assert not states[MATH].is_waiting
    assert states[MATH].age_seconds > 1e6  # it arrived in 1970
    engine.step(11.0, finish=FinishReason.STOP)
    assert len(engine.observer.sequences()) == 1


def test_another_processor_is_refused():
    with pytest.raises(UnsupportedStackError):
        RequestObserver(SimpleNamespace())
