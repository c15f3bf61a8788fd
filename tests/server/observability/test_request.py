"""Series of requests: the buckets, the bound on labels, and that nothing ever decreases."""

import math
import random
import time

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shadow_server.engine import RequestOrigin, SequenceState
from shadow_server.observability.request import MAX_TENANT_LABELS, RequestMetrics
from shadow_server.observability.series import ALL_SERIES

TTFT = "shadow_time_to_first_token_seconds"
MATH = RequestOrigin("math", "acme")
BASE = RequestOrigin(None, "acme")


def render(metrics):
    registry = CollectorRegistry()
    registry.register(metrics)
    # A registry asks once when it is given a collector: that counts as a scrape.
    return generate_latest(registry).decode()


def families(metrics):
    return {f.name: f for f in text_string_to_metric_families(render(metrics))}


def counts(metrics, name=TTFT):
    samples = families(metrics)[name].samples
    return {
        (s.labels["adapter"], s.labels["tenant"]): s.value
        for s in samples
        if s.name == f"{name}_count"
    }


def test_buckets_are_cumulative_and_inclusive():
    metrics = RequestMetrics(4)
    metrics.begin(MATH)
    values = [0.0005, 0.001, 0.0011, 0.02, 5000.0]
    for value in values:
        metrics.observe_first_token(MATH, value, 0.0)
    samples = [s for s in families(metrics)[TTFT].samples if s.labels["adapter"] == "math"]
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = math.inf if sample.labels["le"] == "+Inf" else float(sample.labels["le"])
            assert sample.value == sum(v <= bound for v in values)
    assert next(s.value for s in samples if s.name.endswith("_sum")) == sum(values)


def test_bounds_grow_and_inter_token_latencies_begin_at_a_millisecond():
    bounds = {series.name: series.bounds for series in ALL_SERIES if series.kind == "histogram"}
    for values in bounds.values():
        assert list(values) == sorted(set(values))
    assert bounds["shadow_inter_token_latency_seconds"][:3] == (0.001, 0.002, 0.003)


def test_every_observation_has_its_series():
    metrics = RequestMetrics(4)
    metrics.begin(MATH)
    metrics.observe_first_token(MATH, 0.3, 0.2)
    metrics.observe_tokens(MATH, 7, 1)
    metrics.observe_inter_token(MATH, 0.002)
    metrics.observe_tokens(MATH, 0, 1)
    metrics.observe_finished(MATH, 0.4)
    metrics.end(MATH, "ok")
    text = render(metrics)
    pair = 'adapter="math",tenant="acme"'
    for line in (
        f"shadow_time_to_first_token_seconds_sum{{{pair}}} 0.3",
        f"shadow_request_queue_seconds_sum{{{pair}}} 0.2",
        f"shadow_inter_token_latency_seconds_sum{{{pair}}} 0.002",
        f"shadow_e2e_request_seconds_sum{{{pair}}} 0.4",
        'shadow_tokens_total{adapter="math",kind="prompt",tenant="acme"} 7.0',
        'shadow_tokens_total{adapter="math",kind="generated",tenant="acme"} 2.0',
        'shadow_requests_total{adapter="math",outcome="ok",tenant="acme"} 1.0',
        'shadow_requests_total{adapter="math",outcome="error",tenant="acme"} 0.0',
    ):
        assert line in text


def test_base_adapters_and_tenants_are_apart():
    metrics = RequestMetrics(4)
    for origin in (BASE, MATH, MATH, RequestOrigin("math", "zeta")):
        metrics.begin(origin)
        metrics.observe_first_token(origin, 0.1, 0.0)
    seen = counts(metrics)
    assert seen["__base__", "acme"] == 1
    assert seen["math", "acme"] == 2
    assert seen["math", "zeta"] == 1
    assert seen["__other__", "__other__"] == 0


def test_without_adapter_labels_tenants_keep_theirs():
    metrics = RequestMetrics(0)
    for tenant in ("acme", "zeta"):
        origin = RequestOrigin("math", tenant)
        metrics.begin(origin)
        metrics.observe_first_token(origin, 0.1, 0.0)
    seen = counts(metrics)
    assert seen["__other__", "acme"] == seen["__other__", "zeta"] == 1


def test_sequences_that_wait_and_run():
    states = [
        SequenceState(MATH, True, 4.0),
        SequenceState(MATH, True, 9.0),
        SequenceState(MATH, False, 70.0),
        SequenceState(RequestOrigin("unseen", "acme"), True, 2.0),
    ]
    metrics = RequestMetrics(4, lambda: states)
    metrics.begin(MATH)
    text = render(metrics)
    assert 'shadow_sequences{adapter="math",state="waiting",tenant="acme"} 2.0' in text
    assert 'shadow_sequences{adapter="math",state="running",tenant="acme"} 1.0' in text
    assert 'shadow_oldest_waiting_seconds{adapter="math",tenant="acme"} 9.0' in text
    assert 'shadow_oldest_waiting_seconds{adapter="__other__",tenant="__other__"} 2.0' in text


def test_five_thousand_adapters_of_five_hundred_tenants_have_bounded_labels():
    rng = random.Random(5)
    now = [0.0]
    metrics = RequestMetrics(100, clock=lambda: now[0])
    largest, before, ever = 0, {}, set()
    for round_number in range(12):
        for _ in range(3000):
            # Popular ones change from round to round, so labels change hands.
            number = (int(rng.paretovariate(0.4)) + 50 * round_number) % 5000
            origin = RequestOrigin(f"a{number}", f"t{number % 500}")
            metrics.begin(origin)
            metrics.observe_first_token(origin, 0.1, 0.0)
            metrics.observe_tokens(origin, 1, 1)
            metrics.end(origin, "ok")
        now[0] += 61.0
        seen = counts(metrics)
        own = [pair for pair in seen if pair[0] not in ("__base__", "__other__")]
        assert len(own) <= 100
        ever |= set(own)
        assert len(seen) <= 100 + 2 * MAX_TENANT_LABELS + 2
        assert all(seen[pair] >= value for pair, value in before.items() if pair in seen)
        largest, before = max(largest, len(render(metrics).splitlines())), seen
    # Labels did change hands, and nearly everything was under some label of its own or its tenant's.
    assert len(ever) > 150
    # 302 pairs at most, of about 110 lines each, and a few for the heads.
    assert largest <= 302 * 115 + 50


def test_a_token_costs_microseconds():
    metrics = RequestMetrics(100)
    origins = [RequestOrigin(f"a{i}", "acme") for i in range(200)]
    for origin in origins:
        metrics.begin(origin)
    best = math.inf
    for _ in range(20):
        start = time.perf_counter()
        for origin in origins:
            metrics.observe_inter_token(origin, 0.004)
            metrics.observe_tokens(origin, 0, 1)
        best = min(best, (time.perf_counter() - start) / len(origins))
    assert best < 10e-6  # 1 us; the rest is for slow machines


async def test_metrics_route_shows_them(server):
    await server.load("math")
    await server.complete(adapter="math")
    await server.complete()
    text = (await server.client.get("/metrics/")).text
    pair = 'adapter="math",tenant="default"'
    assert f"shadow_time_to_first_token_seconds_count{{{pair}}} 1.0" in text
    base = 'adapter="__base__",tenant="default"'
    assert f"shadow_e2e_request_seconds_count{{{base}}} 1.0" in text
    assert (
        'shadow_inter_token_latency_seconds_bucket{adapter="math",le="0.002",tenant="default"} 1.0'
        in text
    )
    assert 'shadow_adapters{level="gpu",state="resident"} 1.0' in text
    assert "shadow_adapter_running_requests 0.0" in text
