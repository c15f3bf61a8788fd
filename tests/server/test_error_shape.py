"""Every error that leaves the server has one shape, whoever raised it."""

import json

import pytest
from starlette.responses import JSONResponse

from fake_server import error_of
from shadow_server.engine import runtime_errors
from shadow_server.error_shape import shape_error
from shadow_server.tenancy.identity import Identity


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        (401, {"error": "Unauthorized"}, "invalid_api_key", "authentication_error"),
        (404, {"detail": "Not Found"}, "route_not_found", "invalid_request_error"),
        (
            400,
            {"error": {"message": "m", "type": "BadRequestError", "code": 400}},
            "invalid_request",
            None,
        ),
        (404, {"error": {"message": "m", "param": "model", "code": 404}}, "model_not_found", None),
        (404, {"error": {"message": "m", "code": 404}}, "not_found", None),
        (422, {"error": {"message": "m", "code": "adapter_invalid"}}, "adapter_invalid", None),
        (503, {"error": {"message": "m", "code": 503}}, "unavailable", "service_unavailable_error"),
        (418, {}, "invalid_request", "invalid_request_error"),
        (500, "Internal Server Error", "internal_error", "server_error"),
        (500, None, "internal_error", "server_error"),
        (599, [], "internal_error", "server_error"),
    ],
)
def test_shapes(status, body, code, kind):
    error = shape_error(status, json.dumps(body).encode())["error"]
    assert error["code"] == code
    assert kind is None or error["type"] == kind
    assert error["message"]


def test_body_that_is_not_json():
    assert shape_error(500, b"\xff")["error"]["code"] == "internal_error"


async def test_unknown_routes_and_methods(server):
    answer = await server.client.get("/nope")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "route_not_found"
    for method, path in [
        ("GET", "/v1/completions"),
        ("PUT", "/v1/adapters"),
        ("POST", "/v1/models"),
        ("DELETE", "/health/live"),
    ]:
        answer = await server.client.request(method, path)
        assert answer.status_code == 405
        assert error_of(answer)["code"] == "method_not_allowed"
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/invocations", "/v1/responses", "/v1/messages", "/collective_rpc", "/sleep", "/redoc"]
)
async def test_routes_that_are_not_served(server, path):
    answer = await server.client.post(path, json={"prompt": "hi"})
    assert answer.status_code == 404


async def test_unknown_failure_is_500_without_its_text(server):
    async def fail(*_):
        raise RuntimeError("secret at /home/me/secret.txt")

    server.engine.find_unready_reason = fail
    answer = await server.client.get("/health/ready")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert error_of(answer)["code"] == "internal_error"


async def test_errors_of_the_engine_tell_whether_to_try_again(server):
    async def overloaded():
        error = {"message": "full", "type": "ServiceUnavailable", "code": 503}
        return JSONResponse({"error": error}, 503)

    async def refused():
        return JSONResponse({"error": "no"}, 400, {"vary": "origin"})

    attached = {"/full": overloaded, "/refused": refused}
    for path, endpoint in attached.items():
        server.app.add_api_route(path, endpoint, response_model=None)
    full, bad = [await server.client.get(path) for path in attached]
    assert (full.headers["x-should-retry"], full.headers["retry-after"]) == ("true", "1")
    assert bad.headers["x-should-retry"] == "false"
    assert "retry-after" not in bad.headers
    assert bad.headers["vary"] == "origin"


async def test_paths_of_the_server_are_shown_to_admins_only(server):
    root = server.settings.adapter_roots[0]

    async def fail():
        raise runtime_errors.StorageError(f"{root}/math cannot be read, nor can /etc/secret/x")

    server.app.add_api_route("/fail", fail)
    mine = error_of(await server.client.get("/fail"))["message"]
    assert mine == f"{root}/math cannot be read, nor can <path>"
    async with server.caller(Identity("acme", "user")) as client:
        assert error_of(await client.get("/fail"))["message"].count("<path>") == 2
