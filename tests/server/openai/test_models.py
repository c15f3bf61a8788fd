"""The list of models."""

from fake_server import error_of


async def test_lists_base_and_adapters_with_lineage(server):
    digest = await server.load("math")
    base, adapter = (await server.client.get("/v1/models")).json()["data"]
    assert (base["id"], base["parent"], base["digest"]) == ("fake-base", None, None)
    assert base["root"] == "/models/fake-base"
    assert adapter["id"] == "math"
    assert adapter["object"] == "model"
    assert adapter["parent"] == "fake-base"
    assert adapter["root"] == str(server.root / "math")
    assert adapter["digest"] == digest
    assert adapter["format"] == "paper"
    assert adapter["max_model_len"] == base["max_model_len"] == 128
    assert isinstance(adapter["created"], int)


async def test_one_model_by_name(server):
    await server.load("math")
    assert (await server.client.get("/v1/models/fake-base")).json()["id"] == "fake-base"
    assert (await server.client.get("/v1/models/math")).json()["parent"] == "fake-base"
    answer = await server.client.get("/v1/models/nobody")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
