"""Tenants over HTTP: whose adapters answer, what the base costs, and quotas."""

import asyncio

import pytest

from fake_server import error_of, settle, until
from shadow_server.engine import RegistrySettings
from shadow_server.tenancy.quota import TenantQuotas


def told(answer, *names):
    """Return what an answer tells beside its own name and id."""
    text = answer.text
    for name in names:
        text = text.replace(name, "NAME")
    headers = {
        k: v for k, v in answer.headers.items() if k not in ("x-request-id", "content-length")
    }
    return answer.status_code, text, headers


async def test_short_and_full_names(tenants_server):
    digest = await tenants_server.publish("acme", "math")
    for asked in ({"adapter": "math"}, {"model": "acme/math"}, {"model": "fake-base:acme/math@1"}):
        answer = await tenants_server.complete("acme", **asked)
        assert answer.headers["x-shadow-adapter"] == "acme/math"
        assert answer.headers["x-shadow-adapter-digest"] == digest
    assert (await tenants_server.complete("ops", adapter="acme/math")).status_code == 200
    assert (await tenants_server.complete("ops", adapter="math")).status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": "{}"},
        {"adapter": "{}@1"},
        {"model": "{}"},
        {"model": "{}@1"},
        {"model": "fake-base:{}"},
        {"model": "{}", "adapter": "{}"},
    ],
)
async def test_another_tenants_adapter_answers_as_one_that_does_not_exist(tenants_server, fields):
    await tenants_server.publish("acme", "math")
    answers = []
    for name in ("acme/math", "acme/none"):
        filled = {field: text.format(name) for field, text in fields.items()}
        answers.append(told(await tenants_server.complete("zeta", **filled), "math", "none"))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/adapters/acme/{}"),
        ("DELETE", "/v1/adapters/acme/{}"),
        ("GET", "/v1/adapters/acme/{}/versions"),
        ("POST", "/v1/adapters/acme/{}/pin"),
        ("POST", "/v1/adapters/acme/{}/unpin"),
        ("POST", "/v1/adapters/acme/{}/rollback"),
        ("GET", "/v1/models/acme/{}"),
    ],
)
async def test_adapter_routes_hide_other_tenants_too(tenants_server, method, path):
    await tenants_server.publish("acme", "math")
    there, missing = [
        told(await tenants_server.request("zeta", method, path.format(name)), name)
        for name in ("math", "none")
    ]
    assert there == missing
    assert there[0] == 404
    assert (await tenants_server.request("acme", "GET", "/v1/adapters/math")).status_code == 200


async def test_one_name_of_two_tenants_is_two_adapters(tenants_server):
    mine = await tenants_server.publish("acme", "math", "one")
    theirs = await tenants_server.publish("zeta", "math", "two")
    for name, digest in (("acme", mine), ("zeta", theirs)):
        answer = await tenants_server.complete(name, adapter="math")
        assert answer.headers["x-shadow-adapter-digest"] == digest
        assert answer.headers["x-shadow-adapter"] == f"{name}/math"


async def test_the_base_can_be_refused(tenants_server):
    await tenants_server.set_tenant("acme", can_use_base=False)
    await tenants_server.publish("acme", "math")
    for fields in ({}, {"model": "fake-base"}):
        answer = await tenants_server.complete("acme", **fields)
        assert answer.status_code == 403
        assert error_of(answer)["code"] == "base_model_forbidden"
    assert (await tenants_server.complete("acme", adapter="math")).status_code == 200
    assert (await tenants_server.complete("zeta")).status_code == 200


async def test_the_engine_learns_tenant_weight_and_salt(tenants_server):
    await tenants_server.set_tenant("acme", weight=3.0)
    for name in ("acme", "zeta", "acme"):
        await tenants_server.complete(name)
    first, other, again = tenants_server.engine.tags
    assert (first.tenant, first.weight, other.tenant, other.weight) == ("acme", 3.0, "zeta", 1.0)
    assert first.cache_salt == again.cache_salt
    assert None not in (first.cache_salt, other.cache_salt)
    assert first.cache_salt != other.cache_salt


async def test_requests_a_minute(tenants_server):
    await tenants_server.set_tenant("acme", TenantQuotas(requests_per_minute=2))
    answers = [await tenants_server.complete("acme") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0", "0"]
    assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"2"}
    assert answers[0].headers["x-ratelimit-reset-requests"] == "30s"
    error = error_of(answers[2])
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 29 <= int(answers[2].headers["retry-after"]) <= 30
    answer = await tenants_server.complete("zeta")
    assert answer.status_code == 200
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


async def test_tokens_a_minute_are_settled_by_what_was_used(tenants_server):
    await tenants_server.set_tenant("acme", TenantQuotas(tokens_per_minute=1000))
    answer = await tenants_server.complete("acme", "a b c", max_tokens=100)
    # Told before the answer has ended: what was reserved.
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 1000 - 102
    answer = await tenants_server.complete("acme", "a b c", max_tokens=1)
    # One prompt token and four words, as the fake engine counts; a fraction came back since.
    assert 993 <= int(answer.headers["x-ratelimit-remaining-tokens"]) + 2 <= 997
    for fields in ({"max_tokens": "x"}, {"adapter": "nobody"}, {"max_tokens": 127, "prompt": {}}):
        assert (await tenants_server.complete("acme", **{"prompt": "a", **fields})).status_code in (
            400,
            404,
        )
    answer = await tenants_server.complete("acme", "a", max_tokens=1)
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 985


async def test_too_many_tokens_for_any_minute(tenants_server):
    await tenants_server.set_tenant("acme", TenantQuotas(tokens_per_minute=50))
    answer = await tenants_server.complete("acme", max_tokens=100)
    assert answer.status_code == 429
    assert "retry-after" not in answer.headers
    assert answer.headers["x-should-retry"] == "false"
    assert "more than the 50 of a minute" in error_of(answer)["message"]
    assert (await tenants_server.complete("acme", "a", max_tokens=10)).status_code == 200


async def test_requests_at_once(tenants_server):
    await tenants_server.set_tenant("acme", TenantQuotas(max_concurrent_requests=1))
    tenants_server.engine.gate = asyncio.Event()
    running = asyncio.create_task(tenants_server.complete("acme", stream=True))
    await settle()
    answer = await tenants_server.complete("acme")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    tenants_server.engine.gate.set()
    assert (await running).status_code == 200
    assert (await tenants_server.complete("acme")).status_code == 200


async def test_a_refusal_does_not_read_the_body(tenants_server):
    await tenants_server.set_tenant("acme", TenantQuotas(requests_per_minute=1))
    await tenants_server.complete("acme")
    sent = []

    async def receive():
        raise AssertionError("the body was asked for")

    async def send(message):
        sent.append(message)

    key = tenants_server.headers("acme")["authorization"].encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"authorization", key), (b"content-type", b"application/json")],
        "root_path": "",
    }
    await tenants_server.app(scope, receive, send)
    assert sent[0]["status"] == 429


async def test_quotas_of_the_catalog(tenants_server):
    await tenants_server.set_tenant("acme", TenantQuotas(max_adapters=1))
    await tenants_server.publish("acme", "math")
    folder = tenants_server.root / "math"
    body = {"name": "poet", "path": str(folder)}
    answer = await tenants_server.request("acme", "POST", "/v1/adapters", json=body)
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "insufficient_quota"
    assert answer.headers["x-should-retry"] == "false"
    assert (
        await tenants_server.request("zeta", "POST", "/v1/adapters", json=body)
    ).status_code == 201


class TestResidency:
    """A tenant may have only so many adapters in memory: what it used longest ago makes room."""

    @pytest.fixture
    def registry_settings(self):
        return RegistrySettings(max_host_adapters=8, adapter_wait_seconds=5.0)

    @pytest.fixture
    async def resident(self, tenants_server):
        """Return a function that gives a tenant's resident adapters; `acme` has five, all but `e` on disk."""
        for name in ("a", "b", "c", "d", "e"):
            await tenants_server.publish("acme", name)
        await tenants_server.publish("zeta", "z")
        adapters = tenants_server.engine.adapters
        assert await adapters.make_room("acme", 2)

        def resident(tenant="acme"):
            return {e.name.name for e in adapters.entries(tenant) if e.level != "disk"}

        assert resident() == {"e"}
        return resident

    async def test_a_request_takes_the_place_of_what_was_used_longest_ago(
        self, tenants_server, resident
    ):
        await tenants_server.set_tenant("acme", TenantQuotas(max_resident_adapters=2))
        for name, expected in (("a", "ea"), ("e", "ea"), ("b", "eb"), ("a", "ba")):
            assert (await tenants_server.complete("acme", adapter=name)).status_code == 200
            assert resident() == set(expected)
        assert resident("zeta") == {"z"}

    async def test_a_request_is_refused_while_others_hold_all_places(
        self, tenants_server, resident
    ):
        await tenants_server.set_tenant("acme", TenantQuotas(max_resident_adapters=1))
        tenants_server.engine.gate = asyncio.Event()
        running = asyncio.create_task(tenants_server.complete("acme", adapter="a", stream=True))
        await until(lambda: resident() == {"a"})
        answer = await tenants_server.complete("acme", adapter="b")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert error_of(answer)["code"] == "rate_limit_exceeded"
        assert (await tenants_server.complete("acme", adapter="none")).status_code == 404
        # What is there needs no room, and other tenants have their own.
        same = asyncio.create_task(tenants_server.complete("acme", adapter="a@1"))
        other = asyncio.create_task(tenants_server.complete("zeta", adapter="z"))
        await settle()
        tenants_server.engine.gate.set()
        assert {(await task).status_code for task in (running, same, other)} == {200}
        assert (await tenants_server.complete("acme", adapter="b")).status_code == 200

    async def test_a_crowd_for_cold_adapters_stays_within_the_quota(self, tenants_server, resident):
        await tenants_server.set_tenant("acme", TenantQuotas(max_resident_adapters=2))
        loader = tenants_server.engine.loader
        loader.gate = asyncio.Event()
        crowd = [
            asyncio.create_task(tenants_server.complete("acme", adapter=name))
            for name in "abcd" * 3
        ]
        await until(lambda: sum(task.done() for task in crowd) == 6)
        loader.gate.set()
        codes = [(await task).status_code for task in crowd]
        # Two of the four, and everyone who asked for one of them.
        assert sorted(codes) == [200] * 6 + [429] * 6
        assert len(resident()) == 2
