"""The server's security checks for `python -O`, where an assert does nothing: a script that raises by itself.

Run as `python -O optimized_tenants.py <scratch>`. The whole application over the fake engine: keys on every route,
roles, another tenant's adapter, paths and uploads that lead elsewhere, and every quota.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from fake_server import until
from fake_tenants import TenantsServer, admission_of, route_paths, write_tenant
from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.key import mint_key
from shadow_server.tenancy.quota import TenantQuotas
from shadow_server.tenancy.tenants_file import TenantsFileError, edit_document, parse_document

OPEN = {
    "/health/live": (200, 405),
    "/health/ready": (200, 405),
    "/console": (200, 405),
    "/console/x": (404, 405),
}
"""What answers without a key, and how."""

OPERATORS = {"/load", "/metrics", "/metrics/x"}


class Checks:
    """Counts what was required, and raises where an assert would be gone."""

    def __init__(self) -> None:
        self.num_passed = 0

    def require(self, is_true: bool, what: str) -> None:
        if not is_true:
            raise SystemExit(f"not so under -O: {what}")
        self.num_passed += 1

    def equal(self, found: object, expected: object, what: str) -> None:
        self.require(found == expected, f"{what}: {found!r}, not {expected!r}")


async def check_keys(server: TenantsServer, checks: Checks) -> None:
    """No key, and none that is nearly one, passes a route that is no probe and no file of the console; roles hold."""
    paths = route_paths(server.app) | {"/", "/nope"}
    checks.require(len(paths) >= 20, "routes")
    key = server.keys["acme"]
    wrong = ["", key, f"Basic {key}", f"Bearer {key}x", f"Bearer {mint_key().text}"]
    for path in sorted(paths):
        for method in ("GET", "POST", "DELETE"):
            for headers in ({}, *({"authorization": value} for value in wrong)):
                answer = await server.client.request(method, path, headers=headers)
                expected = OPEN.get(path, (401,))
                checks.require(answer.status_code in expected, f"{method} {path} {headers}")
        status = (await server.request("acme", "GET", path)).status_code
        checks.equal(status == 403, path in OPERATORS, f"GET {path} of a user")


async def check_ended_keys(server: TenantsServer, checks: Checks) -> None:
    """Revoked and expired keys are none."""
    for ending in ({"revoked": True}, {"expires_unix": 1}):
        key = write_tenant(server.path, "leaver")

        def end(document: Any, ending: dict[str, object] = ending) -> tuple[Any, None]:
            tenant = document.find("leaver")
            keys = tuple(row.model_copy(update=ending) for row in tenant.keys)
            return document.with_tenant(tenant.model_copy(update={"keys": keys})), None

        edit_document(server.path, end)
        await server.directory.refresh()
        headers = {"authorization": f"Bearer {key}"}
        answer = await server.client.get("/v1/models", headers=headers)
        checks.equal(answer.status_code, 401, f"a key with {ending}")
    for text in (b"{}", b'{"version": 2}', b"[", b'{"version": 1, "salt": "0"}'):
        try:
            parse_document(text)
        except TenantsFileError:
            continue
        raise SystemExit(f"not so under -O: {text!r} is no tenants file")


async def check_other_tenants(server: TenantsServer, checks: Checks) -> None:
    """Another tenant's adapter answers as one that does not exist."""
    await server.publish("acme", "math")
    for method, path, fields in (
        ("POST", "/v1/completions", {"adapter": "acme/{}"}),
        ("POST", "/v1/completions", {"model": "acme/{}@1"}),
        ("POST", "/v1/completions", {"model": "fake-base:acme/{}"}),
        ("GET", "/v1/models/acme/{}", None),
        ("GET", "/v1/adapters/acme/{}", None),
        ("GET", "/v1/adapters/acme/{}/versions", None),
        ("POST", "/v1/adapters/acme/{}/pin", None),
        ("POST", "/v1/adapters/acme/{}/unpin", None),
        ("POST", "/v1/adapters/acme/{}/rollback", None),
        ("DELETE", "/v1/adapters/acme/{}", None),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "acme/{}"}),
    ):
        told = []
        for name in ("math", "none"):
            options: dict[str, Any] = {}
            if fields is not None:
                options["json"] = {k: v.format(name) for k, v in fields.items()} | {"prompt": "x"}
            answer = await server.request("zeta", method, path.format(name), **options)
            told.append((answer.status_code, answer.text.replace(name, "NAME")))
        checks.equal(told[0], told[1], f"{method} {path} {fields}")
        checks.equal(told[0][0], 404, f"{method} {path} {fields}")
    publish = {"name": "acme/math", "path": "math"}
    answer = await server.request("zeta", "POST", "/v1/adapters", json=publish)
    checks.require(400 <= answer.status_code < 500, "a publish into another tenant")
    await server.set_tenant("zeta", can_use_base=False)
    checks.equal((await server.complete("zeta")).status_code, 403, "the base, refused")
    await server.set_tenant("zeta", can_use_base=True)


async def check_paths(server: TenantsServer, checks: Checks) -> None:
    """No path and no upload leads out of the roots or the staging area."""
    outside = server.root.parent / "outside"
    outside.mkdir()
    (outside / "adapter.txt").write_text("secret")
    os.symlink(outside, server.root / "away")
    inside = server.root / "inside"
    inside.mkdir()
    os.symlink(outside / "adapter.txt", inside / "adapter.txt")
    paths = ["../outside", "x/../../outside", str(outside), "away", "inside", "/etc", "a\0b", ""]
    paths += ["\uff0e\uff0e/outside", "..\u2215outside", "x" * 300, "/" + "x/" * 3000, "\ud800"]
    for path in paths:
        for route, body in (
            ("/v1/adapters", {"name": "stolen", "path": path}),
            ("/v1/load_lora_adapter", {"lora_name": "stolen", "lora_path": path}),
        ):
            # Escaped, so that a lone surrogate gets as far as the server.
            answer = await server.request(
                "acme",
                "POST",
                route,
                content=json.dumps(body),
                headers={"content-type": "application/json"},
            )
            checks.require(400 <= answer.status_code < 500, f"{route} {path!r}")
    for name in ("../adapter.txt", "/etc/passwd", "x/adapter.txt", "", "adapter.bin"):
        files = {"files": (name, b"weights")}
        answer = await server.request(
            "acme", "POST", "/v1/adapters", data={"name": "stolen"}, files=files
        )
        checks.require(400 <= answer.status_code < 500, f"upload of {name!r}")
    for name in ("../x", "a/b/c", "x" * 300, "\u00e9", "a\0", "acme/", "/x", "fake-base"):
        body = {"name": name, "path": "math"}
        answer = await server.request("acme", "POST", "/v1/adapters", json=body)
        checks.require(400 <= answer.status_code < 500, f"the name {name!r}")
    checks.require(not server.engine.adapters.entries("zeta"), "nothing was published")
    checks.equal([e.name.name for e in server.engine.adapters.entries("acme")], ["math"], "names")


async def check_quotas(server: TenantsServer, checks: Checks) -> None:
    """Every quota refuses with 429, and the full queue with 503."""
    for quotas, fields in (
        (TenantQuotas(requests_per_minute=1), {}),
        (TenantQuotas(tokens_per_minute=20), {"max_tokens": 15}),
    ):
        await server.set_tenant("zeta", quotas)
        codes = [(await server.complete("zeta", **fields)).status_code for _ in range(2)]
        checks.equal(codes, [200, 429], f"{quotas}")
    await server.set_tenant("zeta", TenantQuotas(max_concurrent_requests=1))
    server.engine.gate = asyncio.Event()
    names = ["zeta", "acme"]
    running = [asyncio.create_task(server.complete(name, stream=True)) for name in names]
    await until(lambda: admission_of(server.app).num_requests == 2)
    checks.equal((await server.complete("zeta")).status_code, 429, "requests at once")
    checks.equal((await server.complete("ops")).status_code, 503, "the full queue")
    server.engine.gate.set()
    checks.equal([(await task).status_code for task in running], [200, 200], "what was admitted")
    server.engine.gate = None
    for quotas in (TenantQuotas(max_adapters=1), TenantQuotas(max_stored_bytes=20)):
        await server.set_tenant("acme", quotas)
        (server.root / "poet").mkdir(exist_ok=True)
        (server.root / "poet" / "adapter.txt").write_text("other weights")
        answer = await server.request(
            "acme", "POST", "/v1/adapters", json={"name": "poet", "path": "poet"}
        )
        checks.equal(answer.status_code, 429, f"{quotas}")
    await server.set_tenant("acme", TenantQuotas(max_resident_adapters=1))
    await server.request("acme", "POST", "/v1/adapters/math/pin")
    answer = await server.request(
        "acme", "POST", "/v1/adapters", json={"name": "poet", "path": "poet"}
    )
    checks.equal(answer.status_code, 429, "resident adapters")


async def check_all(scratch: Path, checks: Checks) -> None:
    """Run every check on one application."""
    root = scratch / "adapters"
    root.mkdir()
    settings = ServerSettings(
        adapter_roots=(str(root),), max_running_requests=2, max_queued_requests=0
    )
    async with (
        FakeEngine.open(scratch / "state", CollectorRegistry()) as engine,
        TenantsServer.open(engine, settings, root, scratch / "tenants.json") as server,
    ):
        await check_keys(server, checks)
        await check_ended_keys(server, checks)
        await check_other_tenants(server, checks)
        await check_paths(server, checks)
        await check_quotas(server, checks)


def run() -> None:
    """Run every check; the exit code tells."""
    checks = Checks()
    checks.require(sys.flags.optimize > 0, "the flag itself")
    asyncio.run(check_all(Path(sys.argv[1]), checks))
    sys.stdout.write(f"{checks.num_passed} checks passed\n")


if __name__ == "__main__":
    run()
