"""What vLLM's handlers see of the registry."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.v1.engine.output_processor import OutputProcessor

from fake_server import error_of
from shadow_runtime.registry import AdapterRegistry
from shadow_runtime.vllm_bridge.serving_args import make_parser, parse
from shadow_runtime.vllm_bridge.serving_engine import AdapterRequests, VllmEngine
from shadow_server.app import build_app
from shadow_server.settings import ServerSettings


@dataclass(frozen=True)
class Manifest:
    digest: str


@dataclass(frozen=True)
class Handle:
    name: str
    manifest: Manifest
    lora_request: str


class Loader:
    async def load(self, name, path, backbone_config=None):
        return Handle(name, Manifest(path), f"request of {name} {path}")

    async def unload(self, handle):
        pass


async def test_keys_live_as_long_as_their_entry():
    registry = AdapterRegistry(Loader())
    requests = AdapterRequests(registry)
    assert "math" not in requests
    await registry.load("math", "d1")
    lease = registry.lease("math")
    old = lease.entry.key
    await registry.load("math", "d2")
    new = registry.get("math").key
    assert requests[old] == "request of math d1"
    assert requests[new] == "request of math d2"
    assert "math" not in requests
    assert set(requests) == {old, new}
    lease.release()
    entry = await registry.unload("math", wait_seconds=5)
    assert entry.settled.is_set()
    assert old not in requests
    assert len(requests) == 0
    with pytest.raises(KeyError):
        requests[old]


async def test_vllm_finds_no_adapter_by_content_type():
    registry = AdapterRegistry(Loader())
    outcome = await registry.load("text", "d1")
    handle = replace(outcome.entry.handle, lora_request=Named("text"))
    outcome.entry.handle = handle
    serving = BaseServing.__new__(BaseServing)
    serving.models = Models(AdapterRequests(registry))
    request = Chat([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    assert serving._get_active_default_mm_loras(request) is None
    # The trap is real: with an ordinary dict the base request would get that adapter.
    serving.models = Models({"text": handle.lora_request})
    assert serving._get_active_default_mm_loras(request) is handle.lora_request


@dataclass(frozen=True)
class Named:
    lora_name: str


@dataclass
class Models:
    lora_requests: object


@dataclass
class Chat:
    messages: list


def make_engine(*words):
    parser = make_parser()
    args = parse(parser, ["base", *words])
    client = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=64),
        errored=False,
        shutdown=lambda timeout=None: None,
        output_processor=OutputProcessor(None, log_stats=True),
    )
    return VllmEngine(client, args, plan=None, tasks=("generate",))


async def test_key_guards_our_routes_as_it_guards_vllms_and_401_has_the_one_shape():
    engine = make_engine("--api-key", "secret")
    registry = CollectorRegistry()
    app = build_app(engine, ServerSettings(), registry)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for method, path in [
            ("GET", "/v1/adapters"),
            ("POST", "/v1/adapters"),
            ("DELETE", "/v1/adapters/math"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
        ]:
            answer = await client.request(method, path, json={"adapter": "nobody"})
            assert answer.status_code == 401, path
            assert error_of(answer)["code"] == "invalid_api_key"
        headers = {"authorization": "Bearer secret"}
        assert (await client.get("/v1/adapters", headers=headers)).status_code == 200
        for path in ("/version", "/metrics", "/health/live"):
            assert (await client.get(path)).status_code == 200


async def test_only_known_routes_are_attached():
    app = build_app(make_engine(), ServerSettings(), CollectorRegistry())
    assert {route.path for route in app.routes} == {
        "/metrics",
        "/health",
        "/ping",
        "/version",
        "/load",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/v1/models",
        "/v1/models/{name:path}",
        "/v1/adapters",
        "/v1/adapters/{name}",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/health/live",
        "/health/ready",
    }


async def test_readiness_asks_every_worker():
    engine = make_engine()
    engine._client.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(world_size=2))

    async def reason_of(workers):
        async def worker_status():
            if isinstance(workers, Exception):
                raise workers
            return workers

        engine.control.worker_status = worker_status
        engine._probe = None
        return await engine.find_unready_reason()

    assert await reason_of([{"active": True}] * 2) is None
    assert "1 workers do not run" in await reason_of([{"active": True}, {"active": False}])
    assert "1 of 2" in await reason_of([{"active": True}])
    assert "could not be asked" in await reason_of(RuntimeError("secret"))
    engine._client.errored = True
    assert await reason_of([{"active": True}] * 2) == "The engine has stopped"
    engine._client.errored = False
    engine._client.shutdown(timeout=1)
    assert await reason_of([{"active": True}] * 2) == "The server is stopping"
