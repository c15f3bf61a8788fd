"""What routers read: the engine's adapters by level, and who runs and waits."""

import re

from prometheus_client.parser import text_string_to_metric_families

from shadow_server.engine import RequestOrigin, SequenceState


async def samples(server, name):
    text = (await server.client.get("/metrics")).text
    family = next(f for f in text_string_to_metric_families(text) if f.name == name)
    return [(sample.labels, sample.value) for sample in family.samples]


async def only(server, name):
    ((_, value),) = await samples(server, name)
    return value


async def test_loaded_adapters_by_level_and_pin(server):
    for name in "abcdef":  # four slots, of which two are for pins
        await server.load(name)
    await server.client.post("/v1/adapters/f/pin")
    await server.engine.adapters.refresh_levels()  # as the running server does every few seconds
    loaded = await samples(server, "vllm:lora_adapter_loaded")
    assert {value for _, value in loaded} == {1.0}
    assert {labels["adapter_name"] for labels, _ in loaded} == set("abcdef")
    assert {labels["adapter_name"] for labels, _ in loaded if labels["pinned"] == "true"} == {"f"}
    levels = [labels["level"] for labels, _ in loaded]
    num_gpu = levels.count("gpu")
    assert set(levels) == {"gpu", "cpu"}
    assert all(labels["rank"].isdigit() for labels, _ in loaded)
    assert await only(server, "vllm:num_gpu_loaded_lora_adapters") == num_gpu
    assert await only(server, "vllm:num_cpu_loaded_lora_adapters") == 6
    assert await only(server, "vllm:max_gpu_lora_adapters") == 2
    slots = {
        labels["state"]: value for labels, value in await samples(server, "shadow_adapter_slots")
    }
    assert slots == {"pinned": 1, "used": num_gpu - 1, "free": 4 - num_gpu}
    held = server.engine.adapters.entries()
    expected = sum(server.engine.loader.host_bytes(entry.manifest) for entry in held)
    assert await only(server, "shadow_host_tier_bytes") == expected > 0


async def test_names_of_one_digest_take_one_slot(server):
    await server.load("a", "same")
    await server.load("b", "same")
    assert len(await samples(server, "vllm:lora_adapter_loaded")) == 2
    assert await only(server, "vllm:num_gpu_loaded_lora_adapters") == 1


async def test_running_and_waiting_adapters_by_the_names_that_requests_use(server):
    def state(adapter, is_waiting):
        return SequenceState(RequestOrigin(adapter, "acme"), is_waiting, 1.0)

    server.engine.running = [
        state("math", False),
        state("acme/poet", False),
        state("math", True),
        state(None, True),
    ]
    ((labels, value),) = await samples(server, "vllm:lora_requests_info")
    assert labels == {
        "max_lora": "2",
        "running_lora_adapters": "acme/poet,math",
        "waiting_lora_adapters": "math",
    }
    assert value > 1.7e9


async def test_stalled_only_while_there_is_work(server):
    assert await only(server, "shadow_engine_stalled_seconds") == 0
    server.engine.running = [SequenceState(RequestOrigin(None, "acme"), True, 30.0)]
    assert await only(server, "shadow_engine_stalled_seconds") == 30
    await server.engine.generate_probe()
    assert await only(server, "shadow_engine_stalled_seconds") < 5


async def test_build_info(server):
    ((labels, value),) = await samples(server, "shadow_build_info")
    assert value == 1
    assert labels["base_model"] == "fake-base"
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["version"])
    assert labels["engine_version"] == "fake"


async def test_load_seconds_are_those_of_good_loads(server):
    await server.load("math")
    server.engine.loader.failure = RuntimeError("no")
    body = {"name": "bad", "path": server.write_adapter("bad")}
    assert (await server.client.post("/v1/adapters", json=body)).status_code >= 500
    counts = await samples(server, "vllm:lora_adapter_load_seconds")
    assert [value for labels, value in counts if labels.get("le") == "+Inf"] == [1]
