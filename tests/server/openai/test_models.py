"""The list of models."""

import asyncio

from fake_server import error_of
from shadow_server.tenancy.identity import Identity


async def test_lists_base_and_adapters_with_lineage(server):
    digest = await server.load("math")
    base, adapter = (await server.client.get("/v1/models")).json()["data"]
    assert (base["id"], base["parent"], base["digest"]) == ("fake-base", None, None)
    assert base["root"] == "/models/fake-base"
    assert adapter["id"] == "math"
    assert adapter["object"] == "model"
    assert adapter["parent"] == "fake-base"
    assert adapter["root"] == "math"
    assert adapter["digest"] == digest
    assert (adapter["version"], adapter["state"], adapter["tenant"]) == (1, "RESIDENT", "default")
    assert adapter["format"] == "paper"
    assert adapter["max_model_len"] == base["max_model_len"] == 128
    assert isinstance(adapter["created"], int)
    assert set(base) == set(adapter)


async def test_one_model_by_name(server):
    await server.load("math")
    assert (await server.client.get("/v1/models/fake-base")).json()["id"] == "fake-base"
    assert (await server.client.get("/v1/models/math")).json()["parent"] == "fake-base"
    assert (await server.client.get("/v1/models/math@1")).json()["version"] == 1
    for name in ("nobody", "math@2", "a/b/c", "a%00"):
        answer = await server.client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "model_not_found"


async def test_an_adapter_that_can_be_asked_is_listed_before_it_is_loaded(server):
    server.engine.loader.gate = asyncio.Event()
    body = {"name": "math", "path": server.write_adapter("math"), "wait": False}
    await server.client.post("/v1/adapters", json=body)
    _, adapter = (await server.client.get("/v1/models")).json()["data"]
    assert (adapter["id"], adapter["state"]) == ("math", "LOADING")
    server.engine.loader.gate.set()


async def test_callers_see_their_own_and_the_base_only_if_they_may_ask_it(server):
    user = Identity(tenant="acme", role="user")
    guest = Identity(tenant="beta", role="user", can_use_base=False)
    admin = Identity(tenant="ops", role="admin")
    async with (
        server.caller(user) as acme,
        server.caller(guest) as beta,
        server.caller(admin) as ops,
    ):
        await server.load("math", client=acme)
        await server.load("poet", client=beta)
        assert await ids(acme) == ["fake-base", "math"]
        assert await ids(beta) == ["poet"]
        assert await ids(ops) == ["fake-base", "acme/math", "beta/poet"]
        assert (await acme.get("/v1/models/acme/math")).json()["id"] == "math"
        for client, name in ((beta, "fake-base"), (beta, "acme/math"), (ops, "math")):
            answer = await client.get(f"/v1/models/{name}")
            assert error_of(answer)["code"] == "model_not_found"


async def ids(client):
    return [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
