"""How requests ended, as counters by adapter and tenant."""

import asyncio

import pytest
from fastapi.exceptions import RequestValidationError

from fake_server import until
from shadow_server.engine import runtime_errors
from shadow_server.errors import ApiError
from shadow_server.openai.outcome import AnswerWatch
from shadow_server.tenancy.refusal import RefusalError


async def outcomes(server):
    lines = (await server.client.get("/metrics")).text.splitlines()
    found = {}
    for line in lines:
        if line.startswith("shadow_requests_total{") and not line.endswith(" 0.0"):
            labels = dict(part.split("=") for part in line[22:].partition("}")[0].split(","))
            found[labels["adapter"][1:-1], labels["outcome"][1:-1]] = float(line.rsplit(" ", 1)[1])
    return found


async def test_each_request_is_counted_once_under_what_answered(server):
    await server.load("math")
    await server.complete(adapter="math")
    await server.complete(adapter="math", stream=True)
    await server.complete()
    await server.complete(adapter="math", prompt=3)
    await server.complete(adapter="math", max_tokens=1000)
    await server.complete(adapter="nobody")
    await server.client.post("/tokenize", json={"prompt": "a"})
    assert await outcomes(server) == {
        ("math", "ok"): 2,
        ("__base__", "ok"): 1,
        ("math", "invalid"): 2,
        ("__other__", "invalid"): 1,
    }


async def test_an_error_inside_a_stream_is_an_error(server):
    answer = await server.complete("fail now", stream=True)
    assert answer.status_code == 200
    assert await outcomes(server) == {("__base__", "error"): 1}


async def test_an_adapter_that_does_not_come_is_a_rejection(server):
    server.engine.loader.gate = asyncio.Event()
    body = {"name": "slow", "path": server.write_adapter("slow"), "wait": False}
    await server.client.post("/v1/adapters", json=body)
    assert (await server.complete(adapter="slow")).status_code == 503
    assert await outcomes(server) == {("__other__", "rejected"): 1}
    server.engine.loader.gate.set()


async def test_a_client_that_leaves_is_aborted(server):
    server.engine.gate = asyncio.Event()
    request = asyncio.create_task(server.complete())
    await until(lambda: server.engine.tags)
    request.cancel()
    await until(lambda: server.engine.num_aborted)
    assert await outcomes(server) == {("__base__", "aborted"): 1}


@pytest.mark.parametrize(
    ("messages", "error", "outcome"),
    [
        ([], None, "aborted"),
        ([("start", 200)], None, "aborted"),
        ([("start", 200), ("body", b"x", True)], None, "aborted"),
        ([("start", 200), ("body", b"x", True), ("body", b"", False)], None, "ok"),
        ([("start", 499), ("body", b"", False)], None, "aborted"),
        ([("start", 503), ("body", b"", False)], None, "rejected"),
        ([("start", 404), ("body", b"", False)], None, "invalid"),
        (
            [("start", 200), ("body", b'data: {"error": {}}', True), ("body", b"", False)],
            None,
            "error",
        ),
        ([], ApiError(408, "late"), "invalid"),
        ([], RequestValidationError([]), "invalid"),
        ([], runtime_errors.AdapterLoadingError("not yet"), "rejected"),
        ([], RuntimeError(), "error"),
        ([], asyncio.CancelledError(), "aborted"),
    ],
)
async def test_outcomes(messages, error, outcome):
    sent = []

    async def send(message):
        sent.append(message)

    watch = AnswerWatch(send)
    for kind, value, *more in messages:
        message = {"type": f"http.response.{kind}"}
        message |= {"status": value} if kind == "start" else {"body": value, "more_body": more[0]}
        await watch(message)
    assert len(sent) == len(messages)
    assert watch.outcome(error) == outcome


async def test_what_comes_before_the_end_comes_right_before_the_last_byte():
    # A place that is given back later is missed by a client that asks again at once.
    seen = []

    async def send(message):
        seen.append(message.get("body"))

    watch = AnswerWatch(send)
    watch.call_before_end(lambda: seen.append("released"))
    await watch({"type": "http.response.start", "status": 200})
    await watch({"type": "http.response.body", "body": b"a", "more_body": True})
    await watch({"type": "http.response.body", "body": b"z"})
    assert seen == [None, b"a", "released", b"z"]


def test_a_refusal_has_the_status_that_its_client_sees():
    watch = AnswerWatch(None)
    for code, status in (("rate_limit_exceeded", 429), ("server_overloaded", 503)):
        refusal = RefusalError(code, "later", 1.0, ())
        assert (watch.status(refusal), watch.outcome(refusal)) == (status, "rejected")
