"""What openai-python makes of refusals: its exception classes, and retries that honour Retry-After."""

import asyncio
import time

import openai
import pytest

from fake_tenants import write_tenant
from loopback_server import LoopbackServer
from shadow_server.tenancy.quota import TenantQuotas


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    """Yield a server that holds one request at a time, and the keys of its tenants."""
    folder = tmp_path_factory.mktemp("openai")
    path = folder / "tenants.json"
    keys = {
        "plain": write_tenant(path, "plain"),
        "other": write_tenant(path, "other"),
        "slow": write_tenant(path, "slow", quotas=TenantQuotas(requests_per_minute=30)),
        "small": write_tenant(path, "small", quotas=TenantQuotas(tokens_per_minute=20)),
    }
    options = {"max_running_requests": 1, "max_queued_requests": 0}
    with LoopbackServer(folder / "state", path, service_seconds=0.6, **options) as server:
        yield server, keys


@pytest.fixture
def connect(loopback):
    server, keys = loopback
    made = []

    def connect(name, max_retries=0):
        client = openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=keys.get(name, name), max_retries=max_retries
        )
        made.append(client)
        return client

    return connect


async def complete(client, **fields):
    options = {"model": "fake-base", "prompt": "hi", "max_tokens": 4} | fields
    async with client:
        return await client.completions.create(**options)


async def test_wrong_key(connect):
    with pytest.raises(openai.AuthenticationError) as caught:
        await complete(connect("sk-wrong"))
    assert caught.value.code == "invalid_api_key"


async def test_unknown_adapter(connect):
    with pytest.raises(openai.NotFoundError) as caught:
        await complete(connect("plain"), extra_body={"adapter": "nobody"})
    assert (caught.value.code, caught.value.param) == ("adapter_not_found", "adapter")


async def test_too_large_for_any_minute_is_not_tried_again(connect):
    started = time.monotonic()
    with pytest.raises(openai.RateLimitError) as caught:
        await complete(connect("small", max_retries=3), max_tokens=100)
    assert caught.value.code == "rate_limit_exceeded"
    assert "retry-after" not in caught.value.response.headers
    assert time.monotonic() - started < 0.5


async def test_rate_limit_and_its_retry(connect):
    # A used-up minute of 30 requests gives one back every two seconds; refused ones count for nothing.
    async with connect("slow") as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await _tokenize_until_refused(client)
        headers = caught.value.response.headers
        assert caught.value.code == "rate_limit_exceeded"
        assert headers["x-ratelimit-limit-requests"] == "30"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert 1 <= int(headers["retry-after"]) <= 2
    started = time.monotonic()
    answer = await complete(connect("slow", max_retries=2))
    assert answer.choices[0].text == "[base] hi"
    assert time.monotonic() - started >= 1.0


async def _tokenize_until_refused(client):
    root = str(client.base_url).removesuffix("/v1/")
    for _ in range(100):
        await client.post(f"{root}/tokenize", body={"prompt": "a"}, cast_to=object)


async def test_overload_and_its_retry(connect):
    running = asyncio.create_task(complete(connect("plain")))
    await asyncio.sleep(0.2)
    with pytest.raises(openai.InternalServerError) as caught:
        await complete(connect("other"))
    assert (caught.value.status_code, caught.value.code) == (503, "server_overloaded")
    assert caught.value.type == "service_unavailable_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert (await complete(connect("other", max_retries=3))).choices[0].text == "[base] hi"
    assert (await running).choices[0].text == "[base] hi"


async def test_a_stream_carries_the_rates(connect):
    async with connect("small") as client:
        answer = await client.completions.with_raw_response.create(
            model="fake-base", prompt="hi", max_tokens=2, stream=True
        )
        assert answer.headers["x-ratelimit-limit-tokens"] == "20"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 20
        assert answer.headers["x-request-id"]
        assert [chunk async for chunk in answer.parse()]
