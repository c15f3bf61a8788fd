"""One fake engine and its application per test, with adapters on disk to load."""

import pytest
from prometheus_client import CollectorRegistry

from fake_server import Server, client_of
from fake_tenants import TenantsServer, check_released
from shadow_server.app import build_app
from shadow_server.engine import RegistrySettings
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
        adapter_roots=(str(adapter_root),),
        max_body_bytes=100_000,
        max_upload_bytes=3 << 20,
        unload_wait_seconds=0.05,
    )


@pytest.fixture
def registry_settings():
    return RegistrySettings(adapter_wait_seconds=0.2, retry_failed_seconds=0.0)


@pytest.fixture
async def engine(tmp_path, registry_settings):
    registry = CollectorRegistry()
    async with FakeEngine.open(tmp_path / "state", registry, registry_settings) as engine:
        yield engine


@pytest.fixture
async def server(engine, adapter_root, settings):
    app = build_app(engine, settings, engine.registry)
    async with client_of(app) as client:
        yield Server(engine, client, adapter_root, settings, app)
        await check_released(app)
    engine.adapters.check_integrity()
    assert all(entry.num_leases == 0 for entry in engine.adapters.entries())
    assert list((engine.adapters.store.root / "staging").iterdir()) == []


@pytest.fixture
async def tenants_server(engine, adapter_root, settings, tmp_path):
    """Yield a server with the tenants `acme` and `zeta` and the admin `ops`."""
    path = tmp_path / "tenants.json"
    async with TenantsServer.open(engine, settings, adapter_root, path) as made:
        yield made
        await check_released(made.app)
    engine.adapters.check_integrity()
    assert all(entry.num_leases == 0 for entry in engine.adapters.entries())
