"""The series of a real engine: ours split vLLM's by adapter and lose nothing."""

import asyncio

import httpx
import pytest

from running_server import BASE, BUSY_TOKENS, text_of

pytestmark = pytest.mark.engine

PAIRS = {
    "shadow_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "shadow_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "shadow_e2e_request_seconds": "vllm:e2e_request_latency_seconds",
}
QUEUES = ("shadow_request_queue_seconds", "vllm:request_queue_time_seconds")
"""Ours is observed at the first token, vLLM's at the end: a client that leaves in between is in ours alone."""


def test_every_latency_of_the_engine_is_counted_under_one_adapter(server):
    before = server.samples()
    for adapter in ("shout", "french", None):
        text_of(server.complete(adapter=adapter, max_tokens=5, ignore_eos=True))
    text_of(server.complete(adapter="shout", max_tokens=5, ignore_eos=True, n=2, temperature=1))
    after = server.samples()

    def grown(name):
        return after[name] - before.get(name, 0.0)

    def total(name, samples=after):
        return sum(value for key, value in samples.items() if key.startswith(f"{name}{{"))

    for kind in ("count", "sum"):
        for ours, theirs in PAIRS.items():
            stock = after[f'{theirs}_{kind}{{engine="0",model_name="{BASE}"}}']
            assert total(f"{ours}_{kind}") == pytest.approx(stock, rel=1e-9), ours
        mine, stock = (total(f"{name}_{kind}") - total(f"{name}_{kind}", before) for name in QUEUES)
        assert mine == pytest.approx(stock, rel=1e-6)
    for kind, theirs in (("prompt", "vllm:prompt_tokens"), ("generated", "vllm:generation_tokens")):
        mine = sum(v for k, v in after.items() if k.startswith("shadow_tokens_total") and kind in k)
        assert mine == after[f'{theirs}_total{{engine="0",model_name="{BASE}"}}'] > 0
    first = "shadow_time_to_first_token_seconds_count"
    assert grown(f'{first}{{adapter="shout",tenant="default"}}') == 3
    assert grown(f'{first}{{adapter="french",tenant="default"}}') == 1
    assert grown(f'{first}{{adapter="__base__",tenant="default"}}') == 1
    inter = "shadow_inter_token_latency_seconds_count"
    # An answer that is not streamed still counts every engine step: five tokens have four gaps.
    assert grown(f'{inter}{{adapter="french",tenant="default"}}') == 4
    assert grown(f'{inter}{{adapter="shout",tenant="default"}}') == 12
    ended = "shadow_requests_total"
    assert grown(f'{ended}{{adapter="shout",outcome="ok",tenant="default"}}') == 2


def test_vllm_series_are_there(server):
    names = {name.partition("{")[0] for name in server.samples()}
    for name in (
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
    ):
        assert name in names
    assert "shadow_adapters" in names


async def test_routers_see_who_runs_and_who_is_held(server):
    async with httpx.AsyncClient(base_url=server.process.url, timeout=60) as client:
        running = asyncio.create_task(
            client.post(
                "/v1/completions",
                json={
                    "prompt": "a",
                    "adapter": "french",
                    "max_tokens": BUSY_TOKENS,
                    "ignore_eos": True,
                },
            )
        )
        while True:
            samples = await asyncio.to_thread(server.samples)
            info = [k for k in samples if k.startswith("vllm:lora_requests_info{")]
            assert len(info) == 1  # vLLM's own would have one for every combination that ever ran
            if 'running_lora_adapters="french"' in info[0]:
                break
            assert not running.done()
        await running
    loaded = [k for k in server.samples() if k.startswith("vllm:lora_adapter_loaded{")]
    assert {name.partition('adapter_name="')[2].partition('"')[0] for name in loaded} >= {"french"}
    assert all('level="gpu"' in name or 'level="cpu"' in name for name in loaded)
