"""What vLLM's handlers see of the registry."""

from dataclasses import dataclass, replace

import pytest
from vllm.entrypoints.serve.engine.serving import BaseServing

from shadow_runtime.registry import AdapterRegistry
from shadow_runtime.vllm_bridge.serving_engine import AdapterRequests


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
