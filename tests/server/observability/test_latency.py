"""Latency series: the buckets, the bound on labels, and that nothing ever decreases."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shadow_server.observability.latency import SERIES, AdapterLatency

TTFT = "shadow_time_to_first_token_seconds"


def counts(latency, name=TTFT):
    registry = CollectorRegistry()
    registry.register(latency)
    family = next(
        f
        for f in text_string_to_metric_families(generate_latest(registry).decode())
        if f.name == name
    )
    return {s.labels["adapter"]: s.value for s in family.samples if s.name == f"{name}_count"}


def test_buckets_are_cumulative_and_inclusive():
    latency = AdapterLatency(4)
    values = [0.0005, 0.001, 0.0011, 0.02, 5000.0]
    for value in values:
        latency.observe_first_token("math", value)
    family = next(iter(latency.collect()))
    samples = [s for s in family.samples if s.labels["adapter"] == "math"]
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = math.inf if sample.labels["le"] == "+Inf" else float(sample.labels["le"])
            assert sample.value == sum(v <= bound for v in values)
    assert next(s.value for s in samples if s.name.endswith("_sum")) == sum(values)


def test_bounds_grow():
    for _, _, bounds in SERIES:
        assert list(bounds) == sorted(set(bounds))


def test_base_and_adapters_are_apart():
    latency = AdapterLatency(4)
    latency.observe_first_token(None, 0.1)
    latency.observe_first_token("math", 0.1)
    latency.observe_first_token("math", 0.1)
    assert counts(latency) == {"__base__": 1, "__other__": 0, "math": 2}


def test_busy_newcomer_takes_the_quietest_label_and_nothing_is_lost():
    latency = AdapterLatency(2)
    for name, requests in [("a", 10), ("b", 2), ("c", 4)]:
        for _ in range(requests):
            latency.observe_first_token(name, 0.1)
    assert counts(latency) == {"__base__": 0, "__other__": 4, "a": 10, "b": 2}
    latency.observe_first_token("c", 0.1)
    assert counts(latency) == {"__base__": 0, "__other__": 6, "a": 10, "c": 1}


def test_no_labels_at_all():
    latency = AdapterLatency(0)
    latency.observe_first_token("a", 0.1)
    assert counts(latency) == {"__base__": 0, "__other__": 1}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), max_labels=st.integers(1, 5))
def test_series_never_decrease_and_sum_to_the_observations(seed, max_labels):
    rng = random.Random(seed)
    latency = AdapterLatency(max_labels)
    before: dict[str, float] = {}
    for total in range(1, 200):
        name = f"a{min(int(rng.paretovariate(0.5)), 30)}"
        latency.observe_first_token(rng.choice([name, name, None]), rng.expovariate(10))
        if total % 20:
            continue
        now = counts(latency)
        assert sum(now.values()) == total
        assert len(now) <= max_labels + 2
        for label in now.keys() & before.keys():
            assert now[label] >= before[label]
        before = now


async def test_metrics_route_shows_them(server):
    await server.load("math")
    await server.complete(adapter="math")
    await server.complete()
    text = (await server.client.get("/metrics/")).text
    assert 'shadow_time_to_first_token_seconds_count{adapter="math"} 1.0' in text
    assert 'shadow_e2e_request_seconds_count{adapter="__base__"} 1.0' in text
    assert 'shadow_inter_token_latency_seconds_bucket{adapter="math",le="0.002"} 1.0' in text
    assert 'shadow_adapters{level="gpu",state="resident"} 1.0' in text
    assert "shadow_adapter_running_requests 0.0" in text
