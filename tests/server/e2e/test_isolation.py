"""Nobody's mistake is another one's: bad names and bad adapters during good traffic."""

import asyncio
import json
import shutil

import httpx
import pytest

from fake_server import error_of
from running_server import ADAPTERS, GREEDY, PROMPTS, UNLOADED, text_of

pytestmark = pytest.mark.engine

LOADED = [name for name in ADAPTERS if name != UNLOADED]


def spoil(server, index):
    """Write an adapter that is wrong in one of several ways and return its directory."""
    folder = server.root / f"bad-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ADAPTERS["shout"], folder)
    weights = next(folder.glob("*.safetensors"))
    config = folder / "shadow_config.json"
    kind = index % 5
    if kind == 0:
        weights.write_bytes(weights.read_bytes()[:-64])
    elif kind == 1:
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    elif kind == 2:
        weights.unlink()
    elif kind == 3:
        config.write_text("{")
    else:
        fields = json.loads(config.read_text())
        config.write_text(json.dumps(fields | {"alpha": "NaN", "injection_hidden_size": -1}))
        weights.write_bytes(b"")
    return folder


async def test_25_unknown_and_25_invalid_loads_during_good_traffic(server):
    bad = [spoil(server, index) for index in range(25)]
    good = []
    is_over = asyncio.Event()

    async def traffic(client, number):
        turn = number
        while not is_over.is_set() or turn < number + 6:
            prompt, adapter = PROMPTS[turn % len(PROMPTS)], LOADED[turn % len(LOADED)]
            body = {"prompt": prompt.prompt, "adapter": adapter, **GREEDY}
            good.append((prompt, adapter, await client.post("/v1/completions", json=body)))
            turn += 1

    async with httpx.AsyncClient(base_url=server.process.url, timeout=120) as client:
        running = [asyncio.create_task(traffic(client, n)) for n in range(6)]
        unknown = [
            client.post("/v1/completions", json={"prompt": "x", "adapter": f"nobody-{i}"})
            for i in range(25)
        ]
        invalid = [
            client.post("/v1/adapters", json={"name": f"bad-{i}", "path": str(folder)})
            for i, folder in enumerate(bad)
        ]
        missing = [
            client.post("/v1/adapters", json={"name": f"missing-{i}", "path": f"missing-{i}"})
            for i in range(25)
        ]
        answers = await asyncio.gather(*unknown, *invalid, *missing)
        is_over.set()
        await asyncio.gather(*running)
        loaded = await client.post("/v1/adapters", json={"name": "good", "path": UNLOADED})

    for answer in answers[:25]:
        assert (answer.status_code, error_of(answer)["code"]) == (404, "adapter_not_found")
    for answer in answers[25:50]:
        assert answer.status_code == 422, answer.text
        assert error_of(answer)["code"].startswith("adapter_")
        assert len(error_of(answer)["message"]) > 10
    for answer in answers[50:]:
        assert (answer.status_code, error_of(answer)["code"]) == (404, "adapter_not_found")
    assert len(good) >= 36
    for prompt, adapter, answer in good:
        assert text_of(answer) == prompt.expected[adapter]
    assert loaded.status_code == 201
    assert text_of(server.complete(adapter="good")) == PROMPTS[0].expected[UNLOADED]
    assert server.client.get("/health/ready").status_code == 200


def test_only_the_allowed_routes_answer(server):
    for path in (
        "/invocations",
        "/v1/responses",
        "/v1/messages",
        "/v1/chat/completions/batch",
        "/v1/completions/render",
        "/inference/v1/generate",
        "/scale_elastic_ep",
        "/collective_rpc",
        "/sleep",
        "/pause",
        "/update_weights",
        "/v1/embeddings",
        "/pooling",
        "/tokenizer_info",
        "/kv_event_sources",
        "/openapi.yaml",
        "/redoc",
    ):
        for method in ("GET", "POST"):
            answer = server.client.request(method, path, json={"model": "shout", "prompt": "x"})
            assert answer.status_code == 404, (method, path, answer.status_code)
            assert error_of(answer)["code"] == "route_not_found"
    for path in ("/health", "/ping", "/version", "/load", "/health/live", "/health/ready", "/docs"):
        assert server.client.get(path).status_code == 200
