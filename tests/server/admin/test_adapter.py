"""Publish, list, inspect, roll back, pin and delete over HTTP."""

import asyncio
import dataclasses
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry

from fake_server import client_of, error_of, settle, until
from shadow_runtime.errors import AdapterLimitError, CatalogError
from shadow_server.app import build_app
from shadow_server.tenancy.identity import Identity

ACME = Identity(tenant="acme", role="user")
BETA = Identity(tenant="beta", role="user")
ADMIN = Identity(tenant="ops", role="admin")


async def test_load_list_get_delete(server):
    path = server.write_adapter("math")
    answer = await server.client.post("/v1/adapters", json={"name": "math", "path": path})
    assert answer.status_code == 201
    loaded = answer.json()
    assert loaded["state"] == "RESIDENT"
    assert loaded["level"] == "gpu"
    assert loaded["digest"].startswith("sha256:")
    assert loaded["version"] == 1
    assert (loaded["tenant"], loaded["path"]) == ("default", "math")
    assert loaded["source"] == "directory math"
    assert loaded["stored_bytes"] == loaded["num_parameters"] == len("weights of math")
    assert (loaded["pinned"], loaded["failure"], loaded["num_running_requests"]) == (False, None, 0)
    assert (await server.client.get("/v1/adapters")).json()["data"] == [loaded]
    assert (await server.client.get("/v1/adapters/math")).json() == loaded
    answer = await server.client.delete("/v1/adapters/math")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "math",
        "object": "adapter",
        "deleted": True,
        "digest": loaded["digest"],
    }
    await until(lambda: server.engine.loader.held == set())
    for method, suffix in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/versions"),
        ("POST", "/rollback"),
        ("POST", "/pin"),
        ("POST", "/unpin"),
    ):
        answer = await server.client.request(method, f"/v1/adapters/math{suffix}")
        assert answer.status_code == 404, (method, suffix)
        assert error_of(answer)["code"] == "adapter_not_found"


async def test_nothing_of_the_machine_is_shown(server):
    server.write_adapter("math")
    answers = [
        await server.client.post("/v1/adapters", json={"name": "math", "path": "math"}),
        await server.client.get("/v1/adapters"),
        await server.client.get("/v1/adapters/math/versions"),
        await server.client.get("/v1/models"),
        await server.client.post("/v1/adapters/validate", json={"path": "math"}),
    ]
    for answer in answers:
        assert answer.status_code < 300
        assert str(server.root.parent) not in answer.text


async def test_same_bytes_again_are_200_and_other_bytes_replace(server):
    path = server.write_adapter("math", "one")
    body = {"name": "math", "path": path}
    first = await server.client.post("/v1/adapters", json=body)
    again = await server.client.post("/v1/adapters", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["digest"] == again.json()["digest"]
    assert "replaced_digest" not in again.json()
    server.write_adapter("math", "two")
    refused = await server.client.post("/v1/adapters", json=body | {"can_replace": False})
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "adapter_exists"
    other = await server.client.post("/v1/adapters", json=body)
    assert other.status_code == 201
    assert other.json()["version"] == 2
    assert other.json()["replaced_digest"] == first.json()["digest"]
    await until(lambda: server.engine.loader.slots == [other.json()["digest"]])


async def test_versions_and_rollback(server):
    digests = [await server.load("math", text) for text in ("one", "two")]
    cards = (await server.client.get("/v1/adapters/math/versions")).json()["data"]
    assert [(c["version"], c["digest"], c["is_current"]) for c in cards] == [
        (1, digests[0], False),
        (2, digests[1], True),
    ]
    answer = await server.client.post("/v1/adapters/math/rollback")
    assert answer.status_code == 201
    assert (answer.json()["version"], answer.json()["digest"]) == (3, digests[0])
    assert answer.json()["replaced_digest"] == digests[1]
    answer = await server.client.post("/v1/adapters/math/rollback", json={"version": 1})
    assert (answer.status_code, answer.json()["version"]) == (200, 3)
    answer = await server.client.post("/v1/adapters/math/rollback", json={"version": 2})
    assert (answer.status_code, answer.json()["version"]) == (201, 4)
    last = (await server.client.get("/v1/adapters/math/versions")).json()["data"][-1]
    assert (last["origin"], last["is_current"]) == ("rollback", True)
    answer = await server.client.post("/v1/adapters/math/rollback", json={"version": 9})
    assert error_of(answer)["code"] == "adapter_not_found"


@pytest.mark.parametrize(
    "body", [{"version": 0}, {"version": "1"}, {"version": 1.5}, {"extra": 1}, {"version": 10**12}]
)
async def test_rollbacks_that_are_refused(server, body):
    await server.load("math")
    answer = await server.client.post("/v1/adapters/math/rollback", json=body)
    assert answer.status_code == 400
    error_of(answer)


async def test_one_version_by_name(server):
    digests = [await server.load("math", text) for text in ("one", "two")]
    for version, digest in enumerate(digests, start=1):
        answer = await server.client.get(f"/v1/adapters/math@{version}")
        if version == 2:
            assert answer.json()["digest"] == digest
    assert (await server.client.get("/v1/adapters/math@7")).status_code == 404
    for path in ("math@1/pin", "math@1/rollback"):
        answer = await server.client.post(f"/v1/adapters/{path}")
        assert error_of(answer)["code"] == "adapter_not_found"
    assert (await server.client.delete("/v1/adapters/math@1")).status_code == 404
    assert server.engine.adapters.get(server.engine.adapters.entries()[-1].name).version == 2


async def test_pin_and_unpin(server):
    digests = [await server.load(name) for name in ("a", "b", "c")]
    for name in "ab":
        answer = await server.client.post(f"/v1/adapters/{name}/pin")
        assert (answer.status_code, answer.json()["pinned"]) == (200, True)
    assert server.engine.loader.pins == set(digests[:2])
    full = await server.client.post("/v1/adapters/c/pin")
    assert full.status_code == 507
    assert error_of(full)["code"] == "adapter_capacity"
    assert (await server.client.get("/v1/adapters/c")).json()["pinned"] is False
    answer = await server.client.post("/v1/adapters/a/unpin")
    assert (answer.status_code, answer.json()["pinned"]) == (200, False)
    assert (await server.client.post("/v1/adapters/c/pin")).status_code == 200


async def test_delete_in_use_is_202_and_draining_until_the_request_ends(server):
    await server.load("math")
    server.engine.gate = asyncio.Event()
    running = asyncio.create_task(server.complete(adapter="math"))
    await until(lambda: server.engine.tags)
    answer = await server.client.delete("/v1/adapters/math")
    assert answer.status_code == 202
    assert answer.json()["state"] == "DRAINING"
    assert answer.json()["num_running_requests"] == 1
    assert error_of(await server.complete(adapter="math"))["code"] == "adapter_not_found"
    names = [m["id"] for m in (await server.client.get("/v1/models")).json()["data"]]
    assert names == ["fake-base"]
    server.engine.gate.set()
    assert (await running).status_code == 200
    await until(lambda: server.engine.loader.held == set())


@pytest.mark.parametrize(
    "name",
    [
        *("", "a/b/c", "A/b", "a:b", "a@b", "a@1", "../x", "x" * 129, "-a", "fake-base", "é"),
        *("a b", "a\0", "versions", "default/fake-base", "/a", "a/"),
    ],
)
async def test_names_that_are_refused(server, name):
    path = server.write_adapter("math")
    answer = await server.client.post("/v1/adapters", json={"name": name, "path": path})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("adapter_name_invalid", "name")


@pytest.mark.parametrize(
    "name", ["a:b", "..", "%2e%2e", "a%00", "é", "a/b/c", "A/b", "x" * 200, "a%0ab", "%ff", "a b"]
)
@pytest.mark.parametrize("suffix", ["", "/versions", "/pin"])
async def test_names_in_a_path_that_cannot_be(server, name, suffix):
    method = "POST" if suffix == "/pin" else "GET"
    answer = await server.client.request(method, f"/v1/adapters/{name}{suffix}")
    assert answer.status_code == 404
    error_of(answer)


async def test_a_name_in_a_path_may_hold_a_slash(server):
    await server.load("acme/math")
    for spelled in ("acme/math", "acme%2Fmath"):
        card = (await server.client.get(f"/v1/adapters/{spelled}")).json()
        assert (card["id"], card["tenant"]) == ("acme/math", "acme")
        versions = await server.client.get(f"/v1/adapters/{spelled}/versions")
        assert len(versions.json()["data"]) == 1
    assert (await server.client.delete("/v1/adapters/acme%2Fmath")).status_code == 200


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
        {"name": "a", "path": "b", "hub": {"repo": "x/y", "revision": "0" * 40}},
        {"name": "a", "hub": {"repo": "x/y"}},
        {"name": "a", "hub": {"repo": "x/y", "revision": "0" * 40}, "backbone_config": "b"},
        {"name": "a", "path": "b", "wait": "yes"},
        {"name": "a", "path": "b", "stream": 1},
    ],
)
async def test_bodies_that_are_refused(server, body):
    answer = await server.client.post("/v1/adapters", json=body)
    assert answer.status_code == 400
    error_of(answer)


async def test_hub_is_off_by_default(server):
    body = {"name": "a", "hub": {"repo": "org/name", "revision": "0" * 40}}
    for path in ("/v1/adapters", "/v1/adapters/validate"):
        sent = body if path == "/v1/adapters" else {"hub": body["hub"]}
        answer = await server.client.post(path, json=sent)
        assert answer.status_code == 403
        assert error_of(answer)["code"] == "adapter_source_forbidden"


async def test_bad_adapter_is_422_with_the_reason_and_no_path_or_address(server):
    path = server.write_adapter("bad", "broken")
    answer = await server.client.post("/v1/adapters", json={"name": "bad", "path": path})
    assert answer.status_code == 422
    error = error_of(answer)
    assert error["code"] == "adapter_tensor_invalid"
    assert error["message"] == "<path> holds NaN at <address>"
    (server.root / "empty").mkdir()
    answer = await server.client.post("/v1/adapters", json={"name": "e", "path": "empty"})
    assert answer.status_code == 422
    assert error_of(answer)["code"] == "adapter_file_invalid"
    assert server.engine.adapters.entries() == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (AdapterLimitError("it fits no slot, see 0x7f00deadbeef in /opt/engine/x.cu"), 422),
        (RuntimeError("CUDA error at 0x7f00deadbeef in /opt/engine/x.cu"), 500),
    ],
)
async def test_a_load_that_the_engine_refuses_changes_nothing(server, failure, status):
    await server.load("good")
    server.engine.loader.failure = failure
    path = server.write_adapter("math")
    answer = await server.client.post("/v1/adapters", json={"name": "math", "path": path})
    assert answer.status_code == status
    message = error_of(answer)["message"]
    assert "0x7f" not in message
    assert "/opt" not in message
    assert (await server.complete(adapter="good")).status_code == 200
    assert (await server.client.get("/v1/adapters/math")).status_code == 404


async def test_vllm_names_for_load_and_unload(server):
    path = server.write_adapter("math", "one")
    body = {"lora_name": "math", "lora_path": path, "is_3d_lora_weight": False}
    answer = await server.client.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 200
    assert answer.text == "Success: LoRA adapter 'math' added successfully."
    old = (await server.client.get("/v1/adapters/math")).json()["digest"]
    server.write_adapter("math", "two")
    answer = await server.client.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "adapter_exists"
    assert (await server.client.get("/v1/adapters/math")).json()["digest"] == old
    answer = await server.client.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
    assert answer.status_code == 200
    assert (await server.client.get("/v1/adapters/math")).json()["digest"] != old
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


async def test_a_tenant_sees_and_changes_only_its_own(server):
    async with server.caller(ACME) as acme, server.caller(BETA) as beta:
        await server.load("math", "one", acme)
        await server.load("math", "two", acme)
        assert [c["id"] for c in (await acme.get("/v1/adapters")).json()["data"]] == ["math"]
        assert (await acme.get("/v1/adapters/acme/math")).json()["tenant"] == "acme"
        assert (await beta.get("/v1/adapters")).json()["data"] == []
        await refuse_like_unknown(beta, server)
        assert (await acme.get("/v1/adapters/math")).json()["version"] == 2
        assert (await beta.post("/v1/adapters", json={"name": "math", "path": "math"})).json()[
            "version"
        ] == 1


async def refuse_like_unknown(beta, server):
    """Every way to reach acme/math as beta answers as for acme/none, which does not exist."""
    server.write_adapter("math")
    for method, path, body in (
        ("GET", "/v1/adapters/acme/NAME", None),
        ("GET", "/v1/adapters/acme%2FNAME", None),
        ("GET", "/v1/adapters/acme/NAME@1", None),
        ("GET", "/v1/adapters/acme/NAME/versions", None),
        ("GET", "/v1/models/acme/NAME", None),
        ("DELETE", "/v1/adapters/acme/NAME", None),
        ("POST", "/v1/adapters/acme/NAME/rollback", {}),
        ("POST", "/v1/adapters/acme/NAME/pin", None),
        ("POST", "/v1/adapters/acme/NAME/unpin", None),
        ("POST", "/v1/adapters", {"name": "acme/NAME", "path": "math"}),
        ("POST", "/v1/load_lora_adapter", {"lora_name": "acme/NAME", "lora_path": "math"}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "acme/NAME"}),
    ):
        answers = []
        for name in ("math", "none"):
            sent = body and {k: v.replace("NAME", name) for k, v in body.items()}
            answer = await beta.request(method, path.replace("NAME", name), json=sent)
            assert answer.status_code == 404, (method, path)
            headers = {k: v for k, v in answer.headers.items() if k != "x-request-id"}
            answers.append((answer.text.replace(name, "NAME"), headers))
        assert answers[0] == answers[1]


async def test_an_admin_acts_on_any_full_name(server):
    async with server.caller(ACME) as acme, server.caller(ADMIN) as admin:
        await server.load("math", "one", acme)
        await server.load("own", "two", admin)
        cards = (await admin.get("/v1/adapters")).json()["data"]
        assert sorted(card["id"] for card in cards) == ["acme/math", "own"]
        assert (await admin.get("/v1/adapters/math")).status_code == 404
        assert (await admin.post("/v1/adapters/acme/math/pin")).json()["pinned"] is True
        assert (await admin.delete("/v1/adapters/acme/math")).status_code == 200
        assert (await acme.get("/v1/adapters")).json()["data"] == []


async def test_a_database_that_is_down_is_503_and_running_adapters_answer(server, monkeypatch):
    await server.load("math")

    def fail(*args, **kwargs):
        raise CatalogError("the registry's database cannot be reached")

    for name in ("publish", "delete", "rollback", "set_pinned"):
        monkeypatch.setattr(type(server.engine.catalog), name, fail)
    path = server.write_adapter("other")
    for answer in (
        await server.client.post("/v1/adapters", json={"name": "other", "path": path}),
        await server.client.delete("/v1/adapters/math"),
        await server.client.post("/v1/adapters/math/pin"),
    ):
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "catalog_unavailable"
        assert answer.headers["retry-after"] == "1"
    assert (await server.complete(adapter="math")).status_code == 200
    await settle()


class OneRepository(BaseHTTPRequestHandler):
    """A hub that has one file of one repository at one commit."""

    def do_GET(self):
        is_file = self.path == f"/org/math/resolve/{COMMIT}/adapter_config.json"
        self.send_response(200 if is_file else 404)
        if not is_file:
            self.send_header("x-error-code", "EntryNotFound")
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("content-length", str(len(HUB_FILE) if is_file else 0))
        self.end_headers()
        if is_file and self.command == "GET":
            self.wfile.write(HUB_FILE)

    do_HEAD = do_GET  # noqa: N815 - the base class calls it so

    def log_message(self, *args):
        pass


COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB_FILE = b"weights"


@pytest.fixture
def hub_endpoint():
    hub = ThreadingHTTPServer(("127.0.0.1", 0), OneRepository)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{hub.server_port}"
    hub.shutdown()
    thread.join()
    hub.server_close()


async def test_a_hub_repository_at_a_commit(server, hub_endpoint):
    settings = dataclasses.replace(server.settings, hub_allow=("org/*",), hub_endpoint=hub_endpoint)
    app = build_app(server.engine, settings, CollectorRegistry())
    async with client_of(app) as client:
        hub = {"repo": "org/math", "revision": COMMIT}
        # The fake engine's adapters have another file name: the report says so, the source was read.
        report = await client.post("/v1/adapters/validate", json={"hub": hub})
        assert report.status_code == 200
        assert report.json()["error"]["code"] == "adapter_file_invalid"
        assert "adapter_config.json" in report.json()["error"]["message"]
        for changed, status in (
            ({"revision": "main"}, 403),
            ({"repo": "evil/math"}, 403),
            ({"repo": "../math"}, 403),
            ({"repo": "org/math/x"}, 403),
        ):
            answer = await client.post("/v1/adapters", json={"name": "a", "hub": hub | changed})
            assert answer.status_code == status
            assert error_of(answer)["code"] == "adapter_source_forbidden"
