"""Readiness follows generation: red when the engine stands still while HTTP answers, green when it goes on."""

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from canary_server import descendants
from running_server import BUSY_TOKENS

pytestmark = pytest.mark.engine


@contextmanager
def stopped_engine(api_pid):
    """Stop the engine's processes for as long as the block runs."""
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(api_pid)}
    pids = [pid for pid, name in names.items() if name.startswith(b"VLLM::")]
    assert pids
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def ready_status(server):
    """Ask for readiness; an answer comes long before an orchestrator's patience of some seconds is over."""
    started_at = time.monotonic()
    answer = server.client.get("/health/ready")
    assert time.monotonic() - started_at < 2
    return answer.status_code


def test_ready_goes_red_within_ten_seconds_after_generation_stops(server):
    assert server.client.get("/health/ready").status_code == 200
    with stopped_engine(server.process.pid):
        stopped_at = time.monotonic()
        while ready_status(server) == 200:
            assert time.monotonic() - stopped_at < 10
            time.sleep(0.2)  # as an orchestrator asks again and again
        red_after = time.monotonic() - stopped_at
        assert [ready_status(server) for _ in range(3)] == [503] * 3
        for path in ("/health/live", "/v1/models", "/metrics"):
            assert server.client.get(path).status_code == 200
    print(f"red after {red_after:.1f} s")
    assert red_after < 10
    goes_on_at = time.monotonic()
    while ready_status(server) != 200:
        assert time.monotonic() - goes_on_at < 30
        time.sleep(0.2)


async def test_ready_stays_green_and_quick_on_a_busy_server(server):
    body = {"prompt": "a", "max_tokens": BUSY_TOKENS, "ignore_eos": True, "adapter": "shout"}
    work = asyncio.create_task(server.burst([body] * 32))
    statuses = []
    while not work.done():
        statuses.append(await asyncio.to_thread(ready_status, server))
        await asyncio.sleep(0.2)
    assert {answer.status_code for answer in await work} == {200}
    assert len(statuses) > 5
    assert set(statuses) == {200}


def test_probes_are_in_no_statistics(server):
    names = ("vllm:request_success_total", "vllm:time_to_first_token_seconds_count", "shadow_")

    def counted():
        kept = server.samples().items()
        return {
            k: v
            for k, v in kept
            if k.startswith(names) and k.partition("{")[0].endswith(("_total", "_count"))
        }

    time.sleep(3.1)  # so long without output that the next question generates a token
    before = counted()
    assert httpx.get(f"{server.process.url}/health/ready", timeout=20).status_code == 200
    assert counted() == before
