"""Whole runs against a mock server."""

import asyncio

import httpx
import pytest

from shadow_client import AsyncClient, RetryPolicy
from shadow_client.testing import MockServer
from shadow_server.bench.case import SHAPES, plan
from shadow_server.bench.churn import NAME
from shadow_server.bench.run import BenchSettings, report, run_cases

SETTINGS = BenchSettings(concurrency=3, seconds=0.05, num_rounds=2)


@pytest.fixture
def server():
    server = MockServer()
    for name in ("a", "b"):
        server.publish(name)
    return server


def run(server, cases, settings=SETTINGS, **options):
    client = server.async_client(**options)

    async def main():
        async with client:
            return await run_cases(client, cases, settings)

    return asyncio.run(main())


def test_every_case_runs_with_its_adapters(server):
    results = run(server, plan(["a", "b"], [SHAPES["mixed"]], counts=[2]))
    found = report(results, SETTINGS, "base-model")
    assert [case["name"] for case in found["cases"]] == ["mixed/base", "mixed/distinct-2"]
    for case in found["cases"]:
        assert case["failed"] == 0
        assert case["completed"] > 0
    asked = [body.get("adapter") for body in server.bodies if "prompt" in body]
    assert set(asked) == {None, "a", "b"}
    assert found["model_id"] == "base-model"


def test_requests_are_what_the_shape_says_and_never_alike(server):
    run(server, plan([], [SHAPES["decode"]]))
    bodies = [body for body in server.bodies if "prompt" in body]
    assert {len(body["prompt"]) for body in bodies} == {16}
    assert all(body["ignore_eos"] and body["max_tokens"] == 256 for body in bodies)
    assert len({tuple(body["prompt"]) for body in bodies}) == len(bodies)


def test_a_refusal_is_counted_and_the_load_goes_on(server):
    server.fail("server_overloaded")
    results = run(server, plan([], [SHAPES["mixed"]]), retry=RetryPolicy(max_retries=0))
    # The refused one falls into the round that warms up.
    assert report(results, SETTINGS, "m")["cases"][0]["failed"] == 0
    server.fail("server_overloaded", num_times=10_000)
    results = run(server, plan([], [SHAPES["mixed"]]), retry=RetryPolicy(max_retries=0))
    case = report(results, SETTINGS, "m")["cases"][0]
    assert case["completed"] == 0
    assert case["failed"] > 0
    assert "ServerOverloaded" in case["errors"][0]


def test_churn_publishes_meanwhile_and_leaves_nothing(server):
    settings = BenchSettings(concurrency=1, seconds=0.05, num_rounds=1, churn_folders=("x", "y"))
    results = run(server, plan(["a"], [SHAPES["mixed"]], counts=[1], has_churn=True), settings)
    assert results[-1].num_publishes == 1
    assert results[-1].churn_error is None
    names = [adapter.name for adapter in server.client().adapters.list()]
    assert NAME not in names


def test_an_unreachable_server_is_an_error_of_every_request():
    def refuse(request):
        raise httpx.ConnectError("nobody there")

    client = AsyncClient(
        "http://test",
        retry=RetryPolicy(max_retries=0),
        transport=httpx.MockTransport(refuse),
    )

    async def main():
        async with client:
            return await run_cases(client, plan([], [SHAPES["mixed"]]), SETTINGS)

    (result,) = asyncio.run(main())
    assert {timing.error is None for r in result.rounds for timing in r.timings} == {False}


def test_no_round_asks_what_an_earlier_one_has_asked(server):
    cases = plan(["a", "b"], [SHAPES["mixed"]], counts=[1, 2], popularities=("distinct", "zipf"))
    run(server, cases)
    prompts = [tuple(body["prompt"]) for body in server.bodies if "prompt" in body]
    assert len(cases) == 4
    assert len(set(prompts)) == len(prompts)


def test_the_same_seed_asks_the_same_again(server):
    def first_prompts(seed):
        del server.requests[:]
        run(server, plan([], [SHAPES["mixed"]]), BenchSettings(1, 0.01, 1, seed=seed))
        return server.bodies[0]["prompt"]

    assert first_prompts(1) == first_prompts(1) != first_prompts(2)


def test_a_refused_client_does_not_ask_again_at_once(server):
    server.fail("server_overloaded", num_times=10_000)
    settings = BenchSettings(concurrency=2, seconds=0.25, num_rounds=1)
    (result,) = run(server, plan([], [SHAPES["mixed"]]), settings, retry=RetryPolicy(max_retries=0))
    assert 2 <= len(result.rounds[0].timings) <= 2 * 3


def test_a_round_has_a_request_of_each_client_however_short_it_is(server):
    settings = BenchSettings(concurrency=3, seconds=0.0, num_rounds=1)
    (result,) = run(server, plan([], [SHAPES["mixed"]]), settings)
    assert len(result.rounds[0].timings) == 3
