"""One fake engine and its application per test, with adapters on disk to load."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from fake_server import Server
from shadow_server.app import build_app
from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings


@pytest.fixture
def adapter_root(tmp_path):
    root = tmp_path / "adapters"
    root.mkdir()
    return root


@pytest.fixture
def settings(adapter_root):
    return ServerSettings(
        adapter_roots=(str(adapter_root),), max_body_bytes=100_000, unload_wait_seconds=0.05
    )


@pytest.fixture
async def server(adapter_root, settings):
    registry = CollectorRegistry()
    engine = FakeEngine(registry)
    app = build_app(engine, settings, registry)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Server(engine, client, adapter_root, settings)
    engine.adapters.check_integrity()
    assert all(entry.num_leases == 0 for entry in engine.adapters.entries())
