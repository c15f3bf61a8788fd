"""SIGTERM: running answers are finished, new ones refused, the process ends."""

import asyncio
import os
import signal

import httpx
import pytest

from fake_server import error_of
from running_server import START_SECONDS

pytestmark = pytest.mark.engine

# Long enough that the signal surely falls into it.
BODY = {"prompt": ["a", "b", "c", "d"], "max_tokens": 1000, "ignore_eos": True}


async def test_sigterm_drains(start_server):
    process, _ = start_server()
    with process:
        await asyncio.to_thread(process.wait_until_ready, START_SECONDS)
        async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
            running = asyncio.create_task(
                client.post("/v1/completions", json={**BODY, "adapter": "shout"})
            )
            first = asyncio.Event()
            streaming = asyncio.create_task(stream(client, first))
            await first.wait()
            os.kill(process.pid, signal.SIGTERM)
            refused = await until_not_ready(client)
            assert not streaming.done()
            assert error_of(refused)["code"] == "not_ready"
            late = await client.post("/v1/completions", json={"prompt": "a"})
            assert (late.status_code, error_of(late)["code"]) == (503, "server_stopping")
            assert (await streaming).rstrip().endswith("data: [DONE]")
            assert (await running).json()["usage"]["completion_tokens"] == 4000
        assert await asyncio.to_thread(process.wait) == 0


async def stream(client, first):
    received = ""
    async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        async for text in answer.aiter_text():
            received += text
            first.set()
    return received


async def until_not_ready(client):
    for _ in range(500):
        answer = await client.get("/health/ready")
        if answer.status_code == 503:
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError("the server stayed ready after SIGTERM")
