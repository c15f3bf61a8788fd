"""An application over the fake engine that asks for keys."""

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Mount, Route

from fake_server import client_of, settle
from shadow_server.app import build_app
from shadow_server.fake_engine import FakeEngine
from shadow_server.openai.generation import GenerationEndpoint
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.admission import Admission
from shadow_server.tenancy.directory import TenantDirectory
from shadow_server.tenancy.key import mint_key
from shadow_server.tenancy.quota import NO_QUOTAS, TenantQuotas
from shadow_server.tenancy.tenants_file import KeyRow, TenantRow, edit_document


def write_tenant(
    path: Path, name: str, role: str = "user", quotas: TenantQuotas = NO_QUOTAS, **fields: Any
) -> str:
    """Add a key, and the tenant if it is new, to the file; returns the key."""
    key = mint_key()
    row = KeyRow(id=key.key_id, hash=key.hash, role=role, created_unix=1)

    def change(document):
        known = document.find(name)
        keys = (*(known.keys if known else ()), row)
        return document.with_tenant(TenantRow(name=name, keys=keys, quotas=quotas, **fields)), None

    edit_document(path, change)
    return key.text


def route_paths(app) -> set[str]:
    """Return a sample path of every route, and what lies below mounts."""
    paths = set()
    for route in app.routes:
        sample = re.sub(r"{\w+(:\w+)?}", "x", route.path)
        paths.add(sample)
        if isinstance(route, Mount):
            paths.add(f"{sample}/x")
        else:
            assert isinstance(route, Route), route
    return paths


def admission_of(app) -> Admission:
    """Return the queue of an application."""
    endpoints = (getattr(route, "endpoint", None) for route in app.routes)
    (admission,) = {e.admission for e in endpoints if isinstance(e, GenerationEndpoint)}
    return admission


async def check_released(app) -> None:
    """Fail when anything is held of a request that has ended."""
    await settle()
    admission = admission_of(app)
    admission.check_integrity()
    assert admission.num_requests == 0


@dataclass
class TenantsServer:
    """A running application without sockets; `keys` holds one of `acme`, `zeta` and the admin `ops`."""

    engine: FakeEngine
    app: Any
    client: httpx.AsyncClient
    root: Path
    path: Path
    directory: TenantDirectory
    keys: dict[str, str]

    @classmethod
    @asynccontextmanager
    async def open(cls, engine: FakeEngine, settings: ServerSettings, root: Path, path: Path):
        keys = {name: write_tenant(path, name) for name in ("acme", "zeta")}
        keys["ops"] = write_tenant(path, "ops", "admin")
        directory = TenantDirectory(path)
        app = build_app(engine, settings, engine.registry, directory)
        async with client_of(app) as client:
            yield cls(engine, app, client, root, path, directory, keys)

    def headers(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}

    async def request(self, name: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = self.headers(name) | options.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **options)

    async def complete(self, name: str, prompt: str = "hi there", **fields: Any) -> httpx.Response:
        body = {"prompt": prompt, **fields}
        return await self.request(name, "POST", "/v1/completions", json=body)

    async def publish(self, name: str, adapter: str, content: str = "") -> str:
        """Publish an adapter as `name` and return its digest."""
        folder = self.root / adapter.replace("/", "-")
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(content or f"weights of {adapter}")
        body = {"name": adapter, "path": str(folder)}
        answer = await self.request(name, "POST", "/v1/adapters", json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["digest"]

    async def set_tenant(self, name: str, quotas: TenantQuotas = NO_QUOTAS, **fields: Any) -> None:
        """Change a tenant, as the file's watch would take it over."""

        def change(document):
            known = document.find(name)
            update = {"quotas": quotas, **fields}
            return document.with_tenant(known.model_copy(update=update)), None

        edit_document(self.path, change)
        # Not within the assert: `python -O` runs this, too.
        is_changed = await self.directory.refresh()
        assert is_changed
