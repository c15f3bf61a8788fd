"""Probes."""

from fake_server import error_of


async def test_live_and_engine_routes(server):
    assert (await server.client.get("/health/live")).status_code == 200
    for path in ("/health", "/ping", "/version", "/load", "/metrics/"):
        assert (await server.client.get(path)).status_code == 200


async def test_ready_follows_the_workers(server):
    answer = await server.client.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready"}
    server.engine.unready_reason = "worker 1 does not run the plugin"
    answer = await server.client.get("/health/ready")
    assert answer.status_code == 503
    error = error_of(answer)
    assert error["message"] == "worker 1 does not run the plugin"
    assert error["code"] == "not_ready"
    assert answer.headers["retry-after"] == "1"
    assert (await server.client.get("/health/live")).status_code == 200
