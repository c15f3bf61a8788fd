"""A real Prometheus reads what the server shows: promtool finds nothing, queries have answers."""

import asyncio

import httpx

from loopback_server import LoopbackServer
from prometheus import check_metrics, running_prometheus
from shadow_server.observability.series import ALL_SERIES


async def test_promtool_finds_nothing_but_the_colons_of_vllms_names(server):
    await server.load("math")
    await server.complete(adapter="math")
    text = (await server.client.get("/metrics")).text
    given = {series.name for series in ALL_SERIES if series.name.startswith("vllm:")}
    findings = await asyncio.to_thread(check_metrics, text)
    assert sorted(findings) == sorted(
        f"{name} metric names should not contain ':'" for name in given
    )


def test_promtool_sees_what_is_wrong():
    assert check_metrics("# TYPE bad counter\nbad 1\n") != []


async def test_prometheus_scrapes_and_answers(tmp_path):
    folder = tmp_path / "adapters" / "math"
    folder.mkdir(parents=True)
    (folder / "adapter.txt").write_text("weights of math")
    with LoopbackServer(tmp_path, adapter_roots=(str(folder.parent),)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            body = {"name": "math", "path": str(folder)}
            assert (await client.post("/v1/adapters", json=body)).status_code == 201
            with running_prometheus(f"127.0.0.1:{server.port}") as prometheus:
                ok = 'shadow_requests_total{outcome="ok",adapter="math"}'
                ask = {"prompt": "a b", "adapter": "math"}
                assert (await client.post("/v1/completions", json=ask)).status_code == 200
                await asyncio.to_thread(prometheus.wait_for, f"{ok} == 1")
                assert (await client.post("/v1/completions", json=ask)).status_code == 200
                (found,) = await asyncio.to_thread(prometheus.wait_for, f"increase({ok}[1m]) > 0")
                assert found["metric"]["tenant"] == "default"
                p99 = (
                    "histogram_quantile(0.99, sum by (le, adapter) "
                    "(rate(shadow_time_to_first_token_seconds_bucket[1m])))"
                )
                quantiles = await asyncio.to_thread(prometheus.query, p99)
                by_adapter = {q["metric"]["adapter"]: float(q["value"][1]) for q in quantiles}
                # The fake engine says 0.02 s: its bucket ends there and begins at 0.01.
                assert 0.01 < by_adapter["math"] <= 0.02
                assert await asyncio.to_thread(prometheus.query, "shadow_build_info")
