"""A real server with tenants: one that has quotas, one steady, one that comes in crowds, and an admin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from canary_server import CanaryServer, canary_server, create_tenant
from noisy_tenant_run import NOISY, STEADY, NoiseSettings
from version_canary import build_canary

CROWD, ADMIN = "crowd", "admin"
NUMBERS = {NOISY: 10, STEADY: 20, CROWD: 30}
"""The canary that each tenant has under the name `own`."""


@dataclass(frozen=True)
class TenantServer:
    """A server with the tenants `noisy`, which has quotas, `steady` and `crowd`, which have none, and `admin`.

    Attributes:
        server: the server.
        keys: tenant to key.
    """

    server: CanaryServer
    keys: dict[str, str]

    def client(self, tenant: str) -> httpx.Client:
        """Return a blocking client of a tenant."""
        return self.server.client(self.keys[tenant])


@contextmanager
def tenant_server(
    directory: Path, *options: str, settings: NoiseSettings | None = None, **kwargs: Any
) -> Iterator[TenantServer]:
    """Serve a canary base with the tenants, each with its adapter; `settings` holds the quotas.

    `directory`, `options` and the rest go to `canary_server`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tenants.json"
    quotas = (settings or NoiseSettings()).quota_options()
    keys = {name: create_tenant(path, name) for name in (STEADY, CROWD)}
    keys |= {NOISY: create_tenant(path, NOISY, *quotas)}
    keys |= {ADMIN: create_tenant(path, ADMIN, "--role", "admin")}
    with canary_server(directory, *options, tenants_file=path, **kwargs) as server:
        running = TenantServer(server, keys)
        for tenant, number in NUMBERS.items():
            _publish(running, tenant, number)
        yield running


def _publish(tenants: TenantServer, tenant: str, number: int) -> None:
    """Bind the tenant's name `own` to a canary."""
    path = build_canary(tenants.server.base, tenants.server.root / f"{tenant}-{number}", number)
    with tenants.client(ADMIN) as client:
        answer = client.post("/v1/adapters", json={"name": f"{tenant}/own", "path": str(path)})
    answer.raise_for_status()
