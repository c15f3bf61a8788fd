"""The series of a real engine: ours split vLLM's by adapter and lose nothing."""

import pytest

from running_server import BASE, text_of

pytestmark = pytest.mark.engine

PAIRS = {
    "shadow_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "shadow_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "shadow_e2e_request_seconds": "vllm:e2e_request_latency_seconds",
}


def test_every_latency_of_the_engine_is_counted_under_one_adapter(server):
    before = server.samples()
    for adapter in ("shout", "french", None):
        text_of(server.complete(adapter=adapter, max_tokens=5, ignore_eos=True))
    text_of(server.complete(adapter="shout", max_tokens=5, ignore_eos=True, n=2, temperature=1))
    after = server.samples()

    def grown(name):
        return after[name] - before.get(name, 0.0)

    for ours, theirs in PAIRS.items():
        for kind in ("count", "sum"):
            mine = sum(v for k, v in after.items() if k.startswith(f"{ours}_{kind}{{"))
            stock = after[f'{theirs}_{kind}{{engine="0",model_name="{BASE}"}}']
            assert mine == pytest.approx(stock, rel=1e-9)
    first = "shadow_time_to_first_token_seconds_count"
    assert grown(f'{first}{{adapter="shout"}}') == 3
    assert grown(f'{first}{{adapter="french"}}') == 1
    assert grown(f'{first}{{adapter="__base__"}}') == 1
    inter = "shadow_inter_token_latency_seconds_count"
    # An answer that is not streamed still counts every engine step: five tokens have four gaps.
    assert grown(f'{inter}{{adapter="french"}}') == 4
    assert grown(f'{inter}{{adapter="shout"}}') == 12


def test_vllm_series_are_there(server):
    names = {name.partition("{")[0] for name in server.samples()}
    for name in (
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
    ):
        assert name in names
    assert "shadow_adapters" in names
