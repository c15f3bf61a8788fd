"""SIGTERM: running answers are finished as far as the time allows, new ones refused, all ends."""

import asyncio
import json
import os
import signal

import httpx
import pytest

from fake_server import error_of
from running_server import START_SECONDS

pytestmark = pytest.mark.engine

DRAIN_SECONDS = 12
STREAM = {"prompt": "a", "max_tokens": 120, "ignore_eos": True, "adapter": "shout", "stream": True}
# Far more than the engine does within the drain, and fewer than it runs at once: the stream finds a place.
ENDLESS = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "adapter": "french", "n": 100}


async def test_sigterm_drains_and_then_aborts(start_server):
    process, _ = start_server("--shutdown-timeout", str(DRAIN_SECONDS))
    with process:
        await asyncio.to_thread(process.wait_until_ready, START_SECONDS)
        async with httpx.AsyncClient(base_url=process.url, timeout=120) as client:
            endless = asyncio.create_task(client.post("/v1/completions", json=ENDLESS))
            await until_running(client, "french")
            # The last to begin: it must still run when the server is told to stop.
            first = asyncio.Event()
            streaming = asyncio.create_task(stream(client, first))
            await first.wait()
            os.kill(process.pid, signal.SIGTERM)
            refused = await until_not_ready(client)
            assert not streaming.done()
            assert error_of(refused)["code"] == "not_ready"
            late = await client.post("/v1/completions", json={"prompt": "a"})
            assert (late.status_code, error_of(late)["code"]) == (503, "server_stopping")
            received = await streaming
            assert received.rstrip().endswith("data: [DONE]")
            reasons = [json.loads(e[6:])["choices"][0]["finish_reason"] for e in events(received)]
            assert reasons[-1] == "length"
            ended = await endless
            assert ended.status_code == 200, ended.text
            assert "abort" in {choice["finish_reason"] for choice in ended.json()["choices"]}
        assert await asyncio.to_thread(process.wait) == 0


NUM_STREAMS = 24


async def test_no_stream_breaks_when_a_loaded_server_is_told_to_stop(start_server):
    process, _ = start_server("--shutdown-timeout", "120")
    with process:
        await asyncio.to_thread(process.wait_until_ready, START_SECONDS)
        limits = httpx.Limits(max_connections=2 * NUM_STREAMS)
        async with httpx.AsyncClient(base_url=process.url, timeout=180, limits=limits) as client:
            ended: list[str] = []
            busy = asyncio.Event()
            loops = [
                asyncio.create_task(stream_until_refused(client, number, ended, busy))
                for number in range(NUM_STREAMS)
            ]
            await busy.wait()
            os.kill(process.pid, signal.SIGTERM)
            refused = await until_not_ready(client)
            assert error_of(refused)["code"] == "not_ready"
            # Readiness is red while streams still run.
            assert not all(loop.done() for loop in loops)
            await asyncio.gather(*loops)
        assert len(ended) >= 2 * NUM_STREAMS
        assert {reason for reason in ended if reason != "length"} == set()
        assert await asyncio.to_thread(process.wait) == 0


async def stream_until_refused(client, number, ended, busy):
    """Stream answer after answer until the server takes no more; note how each one that began has ended."""
    adapters = ("shout", "french", "json", None)
    body = {**STREAM, "max_tokens": 40, "adapter": adapters[number % len(adapters)]}
    while True:
        text = ""
        try:
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    assert answer.status_code == 503
                    return
                async for part in answer.aiter_text():
                    text += part
        except httpx.ConnectError:
            return  # the server has gone: nothing was begun
        is_whole = text.rstrip().endswith("data: [DONE]")
        last = json.loads(events(text)[-1][6:])["choices"][0]["finish_reason"]
        ended.append(last if is_whole else "broken")
        if len(ended) >= 2 * NUM_STREAMS:
            busy.set()


def events(text):
    return [e for e in text.strip().split("\n\n") if not e.endswith("[DONE]")]


async def stream(client, first):
    received = ""
    async with client.stream("POST", "/v1/completions", json=STREAM) as answer:
        async for text in answer.aiter_text():
            received += text
            first.set()
    return received


async def until_running(client, name):
    for _ in range(500):
        if (await client.get(f"/v1/adapters/{name}")).json()["num_running_requests"]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the request never started")


async def until_not_ready(client):
    for _ in range(500):
        answer = await client.get("/health/ready")
        if answer.status_code == 503:
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError("the server stayed ready after SIGTERM")
