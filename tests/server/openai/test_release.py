"""Every way out of a generation request gives back its place, its lease and the tokens it did not take."""

import asyncio
import dataclasses
import json

import pytest

from fake_server import settle
from fake_tenants import admission_of
from shadow_server.tenancy.quota import TenantQuotas

LIMIT = 6000


class Caller:
    """Sends one request over raw ASGI, to leave when it likes."""

    def __init__(self, server, body, *, more_body=False):
        self._server = server
        self._messages = [{"type": "http.request", "body": body, "more_body": more_body}]
        self._left = asyncio.Event()
        self.sent = []

    def leave(self):
        self._left.set()

    async def receive(self):
        if self._messages:
            return self._messages.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self._left.is_set():
            raise OSError("the client has left")
        self.sent.append(message)

    async def run(self):
        key = self._server.headers("acme")["authorization"].encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"authorization", key), (b"content-type", b"application/json")],
        }
        await self._server.app(scope, self.receive, self.send)


@pytest.fixture
async def limited(tenants_server):
    """Return a server whose tenant `acme` has an adapter and limits of every kind."""
    await tenants_server.publish("acme", "math")
    quotas = TenantQuotas(
        requests_per_minute=100, tokens_per_minute=LIMIT, max_concurrent_requests=5
    )
    await tenants_server.set_tenant("acme", quotas)
    return tenants_server


@pytest.fixture
def admission(limited):
    return admission_of(limited.app)


def taken(admission):
    """Return the tokens that are taken from acme's minute, a second's refill aside."""
    tokens = admission._tenants["acme"].tokens
    return tokens.limit - tokens.remaining


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"adapter": "math"}, 200),
        ({"adapter": "math", "stream": True}, 200),
        ({}, 200),
        ({"adapter": "nobody"}, 404),
        ({"model": "nobody"}, 404),
        ({"adapter": "math", "max_tokens": "x"}, 400),
        ({"adapter": "math", "max_tokens": 1000}, 400),
        ({"adapter": 1}, 400),
        ({"cache_salt": ""}, 400),
        ({"prompt": "x" * 200_000}, 413),
        ({"adapter": "math", "n": 10_000, "max_tokens": 100}, 429),
    ],
)
async def test_answers(limited, admission, fields, status):
    answer = await limited.complete("acme", **{"prompt": "hi", **fields})
    assert answer.status_code == status
    assert admission.num_requests == 0
    assert taken(admission) <= 4


async def test_a_failing_engine(limited, admission):
    async def fail(*_):
        raise RuntimeError("boom")

    for route in limited.app.routes:
        if route.path == "/v1/completions":
            route.endpoint._handler = fail
    assert (await limited.complete("acme", adapter="math")).status_code == 500
    assert (admission.num_requests, taken(admission)) == (0, 0)


async def test_a_client_that_leaves_in_its_body(limited, admission):
    caller = Caller(limited, b'{"prompt":', more_body=True)
    running = asyncio.create_task(caller.run())
    await settle()
    assert admission.num_requests == 1
    caller.leave()
    await running
    assert (admission.num_requests, caller.sent) == (0, [])


async def test_a_body_that_stops_coming(limited, admission):
    for route in limited.app.routes:
        if route.path == "/v1/completions":
            endpoint = route.endpoint
    endpoint._settings = dataclasses.replace(endpoint._settings, max_body_seconds=0.01)
    caller = Caller(limited, b'{"prompt":', more_body=True)
    await caller.run()
    assert caller.sent[0]["status"] == 408
    assert (admission.num_requests, taken(admission)) == (0, 0)


async def test_a_client_that_leaves_a_stream(limited, admission):
    limited.engine.gate = asyncio.Event()
    body = {"prompt": "a b c", "adapter": "math", "stream": True, "max_tokens": 100}
    caller = Caller(limited, json.dumps(body).encode())
    running = asyncio.create_task(caller.run())
    await settle()
    assert admission.num_requests == 1
    assert taken(admission) > 100
    assert caller.sent[0]["status"] == 200
    caller.leave()
    await running
    await settle()
    assert admission.num_requests == 0
    # One prompt token and four words, as the engine reported of the sequence that it aborted.
    assert 4 <= taken(admission) <= 5


async def test_a_request_that_is_cancelled(limited, admission):
    limited.engine.gate = asyncio.Event()
    running = asyncio.create_task(limited.complete("acme", adapter="math", max_tokens=100))
    await settle()
    assert admission.num_requests == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert admission.num_requests == 0


async def test_refusals_are_counted_by_tenant(limited):
    await limited.complete("acme", adapter="math", n=10_000, max_tokens=100)
    text = (await limited.request("ops", "GET", "/metrics/")).text
    assert 'rejected_total{reason="rate_limit_exceeded",tenant="acme"} 1.0' in text
