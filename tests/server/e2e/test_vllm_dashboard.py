"""The queries that dashboards made for vLLM ask, over this server: same names, same labels, and data."""

import time

import pytest

from prometheus import running_prometheus
from running_server import BASE

pytestmark = pytest.mark.engine

SECONDS = 60
HISTOGRAMS = (
    "vllm:e2e_request_latency_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_params_max_tokens",
)
COUNTERS = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
)
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def queries() -> list[str]:
    """Return the queries; panels choose a model by the label `model_name`."""
    model, span = f'model_name="{BASE}"', "[5s]"
    quantiles = [
        f"histogram_quantile({q}, sum by (le) (rate({name}_bucket{{{model}}}{span})))"
        for name in HISTOGRAMS
        for q in (0.5, 0.9, 0.99)
    ]
    means = [
        f"rate({name}_sum{{{model}}}{span}) / rate({name}_count{{{model}}}{span})"
        for name in HISTOGRAMS
    ]
    rates = [f"sum(rate({name}{{{model}}}{span})) > 0" for name in COUNTERS]
    by_reason = f"sum by (finished_reason) (increase(vllm:request_success_total{{{model}}}{span}))"
    http = f'sum(rate(http_requests_total{{status="2xx"}}{span})) > 0'
    return [*quantiles, *means, *rates, by_reason, http, *(f"{name}{{{model}}}" for name in GAUGES)]


def test_every_query_has_an_answer(server):
    with running_prometheus(server.process.url.removeprefix("http://")) as prometheus:
        waiting = queries()
        deadline = time.monotonic() + SECONDS
        while waiting and time.monotonic() < deadline:
            for adapter in ("shout", None):
                body = {"prompt": "the old fox sees a dog " * 40, "adapter": adapter}
                server.client.post(
                    "/v1/completions", json=body | {"max_tokens": 8}
                ).raise_for_status()
            time.sleep(0.5)
            waiting = [query for query in waiting if not is_answered(prometheus.query(query))]
    assert waiting == []


def is_answered(samples: list[dict]) -> bool:
    """Whether a query has a sample that is a number."""
    return any(sample["value"][1] != "NaN" for sample in samples)
