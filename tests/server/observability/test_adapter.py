"""Series of what the registry holds and does."""

import asyncio

from fake_server import until
from shadow_server.observability.adapter import AdapterEvents


async def samples(server, prefix="shadow_"):
    lines = (await server.client.get("/metrics")).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(prefix))
    return {name: float(value) for name, value in pairs}


async def test_adapters_by_state_and_level_with_leases_and_pins(server):
    for name in "abcdef":  # four slots
        await server.load(name)
    await server.client.post("/v1/adapters/a/pin")
    server.engine.gate = asyncio.Event()
    running = asyncio.create_task(server.complete(adapter="a"))
    await until(lambda: server.engine.tags)
    seen = await samples(server)
    assert (
        seen['shadow_adapters{level="gpu",state="resident"}']
        + (seen['shadow_adapters{level="host",state="resident"}'])
        == 6
    )
    assert seen['shadow_adapters{level="disk",state="failed"}'] == 0
    assert seen["shadow_adapters_pinned"] == 1
    assert seen["shadow_adapter_running_requests"] == 1
    await server.client.delete("/v1/adapters/a")
    seen = await samples(server, "shadow_adapters{")
    assert sum(v for k, v in seen.items() if 'state="draining"' in k) == 1
    server.engine.gate.set()
    await running


async def test_loads_waits_and_evictions(server):
    await server.load("math", "one")
    await server.load("math", "two")
    server.engine.loader.gate = asyncio.Event()
    body = {"name": "slow", "path": server.write_adapter("slow"), "wait": False}
    await server.client.post("/v1/adapters", json=body)
    assert (await server.complete(adapter="slow")).status_code == 503
    server.engine.loader.gate.set()
    await until(lambda: len(server.engine.loader.held) == 3)
    await server.client.delete("/v1/adapters/slow")
    await until(lambda: len(server.engine.loader.held) == 2)
    seen = await samples(server)
    assert seen['shadow_adapter_load_seconds_count{result="ok",source="publish"}'] == 3
    assert seen["shadow_adapter_wait_seconds_count"] == 1
    assert seen["shadow_adapter_wait_seconds_sum"] >= 0.2
    assert seen['shadow_adapter_evictions_total{reason="superseded"}'] == 1
    assert seen['shadow_adapter_evictions_total{reason="deleted"}'] == 1


async def test_every_series_has_one_help_and_one_type(server):
    await server.load("math")
    text = (await server.client.get("/metrics")).text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE shadow_")]
    assert len(names) == len(set(names)) >= 9
    for name in names:
        assert f"# HELP {name} " in text


def test_a_histogram_counts_at_its_bounds():
    events = AdapterEvents()
    for seconds in (0.001, 0.0011, 500.0):
        events.on_load(seconds, "store", "ok")
    loads = next(iter(events.collect()))
    counts = {s.labels["le"]: s.value for s in loads.samples if s.name.endswith("_bucket")}
    assert (counts["0.001"], counts["0.0025"], counts["120.0"], counts["+Inf"]) == (1, 2, 2, 3)
