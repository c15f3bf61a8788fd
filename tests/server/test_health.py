"""Probes."""

import asyncio
import time

from fake_server import error_of, until


async def timed_ready(server):
    """Ask for readiness; the answer may not take as long as an orchestrator waits."""
    started_at = time.monotonic()
    answer = await server.client.get("/health/ready")
    assert time.monotonic() - started_at < 1.5
    return answer


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


async def test_ready_means_that_a_token_was_generated(server):
    assert (await server.client.get("/health/ready")).status_code == 200
    assert server.engine.num_probes == 1


async def test_ready_goes_red_when_generation_stops_while_http_answers(server):
    assert (await server.client.get("/health/ready")).status_code == 200
    server.engine.stall = asyncio.Event()
    server.engine.last_output_at -= 3  # quiet for as long as is taken for normal
    started_at = time.monotonic()
    answers = [await timed_ready(server)]
    while answers[-1].status_code == 200:
        await asyncio.sleep(0.2)
        answers.append(await timed_ready(server))
    assert "does not generate" in error_of(answers[-1])["message"]
    assert 5 <= time.monotonic() - started_at < 7
    assert (await timed_ready(server)).status_code == 503
    assert (await server.client.get("/health/live")).status_code == 200
    assert (await server.client.get("/v1/models")).status_code == 200
    server.engine.stall.set()
    await until(lambda: time.monotonic() - server.engine.last_output_at < 1)
    assert (await server.client.get("/health/ready")).status_code == 200
