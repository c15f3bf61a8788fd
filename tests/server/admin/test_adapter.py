"""Load, replace, inspect and unload over HTTP."""

import asyncio

import pytest

from fake_server import error_of, settle


async def test_load_list_get_unload(server):
    path = server.write_adapter("math")
    answer = await server.client.post("/v1/adapters", json={"name": "math", "path": path})
    assert answer.status_code == 201
    loaded = answer.json()
    assert loaded["state"] == "RESIDENT"
    assert loaded["digest"].startswith("sha256:")
    assert (await server.client.get("/v1/adapters")).json()["data"] == [loaded]
    assert (await server.client.get("/v1/adapters/math")).json() == loaded
    answer = await server.client.delete("/v1/adapters/math")
    assert answer.status_code == 200
    assert answer.json()["deleted"] is True
    assert server.engine.loader.held == set()
    for method in ("GET", "DELETE"):
        answer = await server.client.request(method, "/v1/adapters/math")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "adapter_not_found"


async def test_same_bytes_again_are_200_and_other_bytes_replace(server):
    path = server.write_adapter("math", "one")
    body = {"name": "math", "path": path}
    first = await server.client.post("/v1/adapters", json=body)
    again = await server.client.post("/v1/adapters", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["digest"] == again.json()["digest"]
    server.write_adapter("math", "two")
    other = await server.client.post("/v1/adapters", json=body)
    assert other.status_code == 201
    assert other.json()["replaced_digest"] == first.json()["digest"]
    await settle()
    assert server.engine.loader.held == {other.json()["digest"]}


async def test_unload_in_use_is_202_and_draining_until_the_request_ends(server):
    await server.load("math")
    server.engine.gate = asyncio.Event()
    running = asyncio.create_task(server.complete(adapter="math"))
    await settle()
    for _ in range(2):
        answer = await server.client.delete("/v1/adapters/math")
        assert answer.status_code == 202
        assert answer.json()["state"] == "DRAINING"
        assert answer.json()["num_running_requests"] == 1
    assert error_of(await server.complete(adapter="math"))["code"] == "adapter_not_found"
    names = [m["id"] for m in (await server.client.get("/v1/models")).json()["data"]]
    assert names == ["fake-base"]
    server.engine.gate.set()
    assert (await running).status_code == 200
    await settle()
    assert server.engine.loader.held == set()


@pytest.mark.parametrize(
    "name", ["", "a/b", "a:b", "a@b", "../x", "x" * 129, "-a", "fake-base", "é", "a b", "a\0"]
)
async def test_names_that_are_refused(server, name):
    path = server.write_adapter("math")
    answer = await server.client.post("/v1/adapters", json={"name": name, "path": path})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("adapter_name_invalid", "name")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "a"},
        {"path": "a"},
        {"name": 1, "path": "a"},
        {"name": "a", "path": ["b"]},
        {"name": "a", "path": "b", "backbone_config": 3},
        {"name": "a", "path": "b", "extra": 1},
    ],
)
async def test_bodies_that_are_refused(server, body):
    answer = await server.client.post("/v1/adapters", json=body)
    assert answer.status_code == 400
    error_of(answer)


async def test_bad_adapter_is_422_with_the_reason_and_no_foreign_path_or_address(server):
    path = server.write_adapter("bad", "broken")
    answer = await server.client.post("/v1/adapters", json={"name": "bad", "path": path})
    assert answer.status_code == 422
    error = error_of(answer)
    assert error["code"] == "adapter_tensor_invalid"
    assert error["message"] == f"{path}/adapter.txt holds NaN at <address>"
    (server.root / "empty").mkdir()
    answer = await server.client.post("/v1/adapters", json={"name": "e", "path": "empty"})
    assert answer.status_code == 422
    assert error_of(answer)["code"] == "adapter_file_invalid"
    assert server.engine.adapters.entries() == []


async def test_vllm_names_for_load_and_unload(server):
    path = server.write_adapter("math", "one")
    body = {"lora_name": "math", "lora_path": path, "is_3d_lora_weight": False}
    answer = await server.client.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 200
    assert answer.text == "Success: LoRA adapter 'math' added successfully."
    old = server.engine.adapters.get("math").digest
    server.write_adapter("math", "two")
    answer = await server.client.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "adapter_exists"
    assert server.engine.adapters.get("math").digest == old
    assert server.engine.loader.held == {old}
    answer = await server.client.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
    assert answer.status_code == 200
    assert server.engine.adapters.get("math").digest != old
    answer = await server.client.post(
        "/v1/unload_lora_adapter", json={"lora_name": "math", "lora_int_id": 1}
    )
    assert answer.text == "Success: LoRA adapter 'math' removed successfully."
    answer = await server.client.post("/v1/unload_lora_adapter", json={"lora_name": "math"})
    assert answer.status_code == 404
    answer = await server.client.post("/v1/load_lora_adapter", json={"lora_name": "math"})
    assert answer.status_code == 400


async def test_bad_loads_never_harm_good_traffic(server):
    await server.load("math")
    broken = server.write_adapter("bad", "broken")

    async def good():
        return await server.complete(adapter="math")

    async def unknown(i):
        return await server.complete(adapter=f"nobody{i}")

    async def invalid(i):
        return await server.client.post("/v1/adapters", json={"name": f"b{i}", "path": broken})

    work = [w for i in range(25) for w in (good(), unknown(i), invalid(i), good())]
    statuses = [a.status_code for a in await asyncio.gather(*work)]
    assert statuses == [200, 404, 422, 200] * 25
