"""What the application does beside its routes."""

import asyncio

from fake_server import running_client, until
from fake_tenants import write_tenant
from shadow_server.app import build_app
from shadow_server.tenancy.directory import TenantDirectory


async def test_a_running_server_takes_over_new_keys(engine, settings, tmp_path):
    path = tmp_path / "tenants.json"
    write_tenant(path, "acme")
    directory = TenantDirectory(path, poll_seconds=0.01)
    app = build_app(engine, settings, engine.registry, directory)
    async with running_client(app) as client:
        key = write_tenant(path, "late")
        headers = {"authorization": f"Bearer {key}"}
        await until(lambda: directory.authenticate(key) is not None, 10)
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
    # The watch ends with the server.
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if "watch" in repr(task.get_coro())]
