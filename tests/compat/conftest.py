"""Servers for other people's clients: one over the fake engine, with keys, and one real CPU server without."""

import contextlib

import pytest

from fake_tenants import write_tenant
from loopback_server import LoopbackServer
from running_server import ENVIRONMENT, START_SECONDS, RunningServer, arguments, free_port
from shadow_server.server_process import ServerProcess
from shadow_server.tenancy.quota import TenantQuotas


@pytest.fixture(scope="session")
def fake(tmp_path_factory):
    """Yield a server that runs one request at a time, an adapter root, and the keys of its tenants.

    `plain` and `other` have no quotas, `slow` a request every two seconds, `adapters` room for two of them;
    `ops` is the admin.
    """
    folder = tmp_path_factory.mktemp("compat")
    root, tenants = folder / "adapters", folder / "tenants.json"
    root.mkdir()
    keys = {name: write_tenant(tenants, name) for name in ("plain", "other")}
    keys["slow"] = write_tenant(tenants, "slow", quotas=TenantQuotas(requests_per_minute=30))
    keys["adapters"] = write_tenant(tenants, "adapters", quotas=TenantQuotas(max_adapters=2))
    keys["ops"] = write_tenant(tenants, "ops", "admin")
    options = {"max_running_requests": 1, "max_queued_requests": 0, "adapter_roots": [str(root)]}
    with LoopbackServer(folder / "state", tenants, service_seconds=0.3, **options) as server:
        yield server, root, keys


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Yield the demo's base with its adapters on the CPU engine."""
    folder = tmp_path_factory.mktemp("compat-real")
    root = folder / "adapters"
    root.mkdir()
    process = ServerProcess(arguments(root), "127.0.0.1", free_port(), folder / "server.log")
    with contextlib.ExitStack() as stack:
        # Only the server inherits them: another engine with another number of threads rounds otherwise.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            stack.enter_context(process)
        process.wait_until_ready(START_SECONDS)
        running = RunningServer(process, root)
        yield running
        running.client.close()
