"""Keys on every route, roles on the operator's, and nothing that tells an unknown caller anything."""

import logging

import pytest

from fake_server import error_of
from fake_tenants import route_paths, write_tenant
from shadow_server.middleware.access import find_access
from shadow_server.tenancy import directory as directory_module
from shadow_server.tenancy.key import mint_key

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
PUBLIC = {"/health/live", "/health/ready", "/console", "/console/x"}


async def test_every_route_and_every_method_needs_a_key(tenants_server):
    paths = route_paths(tenants_server.app)
    assert len(paths) >= 20
    for path in sorted(paths | {"/", "/nope", "/v1/adapters/", "/metrics/", "/docs/x"}):
        for method in METHODS:
            answer = await tenants_server.client.request(method, path)
            if path in PUBLIC:
                assert answer.status_code in (200, 404, 405), (method, path)
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                error = error_of(answer)
                assert error["type"] == "authentication_error"
                assert error["code"] == "invalid_api_key"


async def test_every_answer_without_a_key_is_the_same(tenants_server):
    key = tenants_server.keys["acme"]
    headers = [{}, *({"authorization": value} for value in _wrong_headers(key))]
    seen = set()
    for path in ("/v1/models", "/metrics", "/nope", "/v1/adapters/acme/x"):
        for each in headers:
            encoded = {k: v.encode("latin-1") for k, v in each.items()}
            answer = await tenants_server.client.get(path, headers=encoded)
            told = [(k, v) for k, v in answer.headers.items() if k != "x-request-id"]
            seen.add((answer.status_code, answer.text, tuple(told)))
    assert len(seen) == 1


def _wrong_headers(key):
    unknown = mint_key().text
    return [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {key}",
        key,
        f"Bearer{key}",
        f"Bearer {key}x",
        f"Bearer {key[:-1]}",
        f"Bearer {key} {key}",
        f"Bearer {key}, Bearer {key}",
        f"Bearer {key.upper()}",
        f"Bearer {unknown}",
        f"Bearer {unknown[:22]}{key[22:]}",
        "Bearer \xe9\xe9",
        "Bearer " + "x" * 100_000,
    ]


async def test_two_authorization_headers_are_none(tenants_server):
    value = tenants_server.headers("acme")["authorization"]
    answer = await tenants_server.client.get(
        "/v1/models", headers=[("authorization", value), ("authorization", value)]
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_key_is_accepted(tenants_server, scheme):
    headers = {"authorization": f"{scheme} {tenants_server.keys['acme']}"}
    answer = await tenants_server.client.get("/v1/models", headers=headers)
    assert answer.status_code == 200


async def test_roles_on_every_route(tenants_server):
    for path in sorted(route_paths(tenants_server.app)):
        access = find_access(path)
        user = await tenants_server.request("acme", "GET", path)
        admin = await tenants_server.request("ops", "GET", path)
        assert admin.status_code not in (401, 403), path
        if access == "admin":
            assert user.status_code == 403
            error = error_of(user)
            assert (error["type"], error["code"]) == ("permission_error", "admin_required")
        else:
            assert user.status_code not in (401, 403), path


async def test_unknown_routes_are_404_with_a_key(tenants_server):
    for name in ("acme", "ops"):
        for path in ("/nope", "/sleep", "/invocations", "/v1/responses"):
            answer = await tenants_server.request(name, "POST", path, json={})
            assert answer.status_code == 404
            assert error_of(answer)["code"] == "route_not_found"


async def test_a_route_that_the_table_lacks_is_closed_to_everyone(tenants_server):
    tenants_server.app.add_api_route("/forgotten", lambda: {"secret": 1})
    assert "/forgotten" in route_paths(tenants_server.app)
    for name in ("acme", "ops"):
        assert (await tenants_server.request(name, "GET", "/forgotten")).status_code == 404


async def test_websockets_are_closed(tenants_server):
    for headers in (
        [],
        [(b"authorization", tenants_server.headers("ops")["authorization"].encode())],
    ):
        sent = []

        async def send(message, sent=sent):
            sent.append(message)

        async def receive():
            return {"type": "websocket.connect"}

        scope = {
            "type": "websocket",
            "path": "/v1/completions",
            "headers": headers,
            "root_path": "",
        }
        await tenants_server.app(scope, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_revoked_key_ends_when_the_file_says_so(tenants_server):
    later = write_tenant(tenants_server.path, "late")
    headers = {"authorization": f"Bearer {later}"}
    assert (await tenants_server.client.get("/v1/models", headers=headers)).status_code == 401
    assert await tenants_server.directory.refresh()
    assert (await tenants_server.client.get("/v1/models", headers=headers)).status_code == 200
    await tenants_server.set_tenant("late", keys=())
    assert (await tenants_server.client.get("/v1/models", headers=headers)).status_code == 401


async def test_an_unknown_key_id_is_compared_too(tenants_server, monkeypatch):
    compared = []
    real = directory_module.matches
    monkeypatch.setattr(
        directory_module, "matches", lambda s, h: compared.append(h is None) or real(s, h)
    )
    for key in (tenants_server.keys["acme"], mint_key().text, "nonsense"):
        await tenants_server.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert compared == [False, True, True]


async def test_refusals_are_counted(tenants_server):
    await tenants_server.client.get("/v1/models")
    await tenants_server.request("acme", "GET", "/metrics")
    text = (await tenants_server.request("ops", "GET", "/metrics/")).text
    total = "shadow_requests_rejected_total"
    assert f'{total}{{reason="invalid_api_key",tenant="__none__"}} 1.0' in text
    assert f'{total}{{reason="admin_required",tenant="acme"}} 1.0' in text


async def test_no_key_reaches_a_log_or_an_answer(tenants_server, caplog):
    await tenants_server.publish("acme", "math")
    secrets = [key.split("-", 3)[3] for key in tenants_server.keys.values()]
    texts = []
    with caplog.at_level(logging.DEBUG):
        for name in ("acme", "ops"):
            for path in ("/v1/models", "/v1/adapters", "/metrics/", "/nope", "/load", "/docs"):
                texts.append((await tenants_server.request(name, "GET", path)).text)
            texts.append((await tenants_server.complete(name, adapter="math")).text)
            texts.append((await tenants_server.complete(name, max_tokens="x")).text)
        wrong = tenants_server.keys["acme"] + "x"
        headers = {"authorization": f"Bearer {wrong}"}
        texts.append((await tenants_server.client.get("/v1/models", headers=headers)).text)
    for secret in secrets:
        assert all(secret not in text for text in [*texts, caplog.text])


async def test_without_tenants_nobody_needs_a_key(server):
    assert (await server.client.get("/metrics/")).status_code == 200
    assert (await server.client.get("/v1/adapters")).status_code == 200
