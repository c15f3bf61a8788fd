"""Ids: the client's is echoed, the engine's is ours."""

import pytest

from shadow_server.middleware.request_id import RequestIdMiddleware, internal_id_of, shown_id_of


async def pass_through(given, answer_headers=()):
    """Return the inner scope and the headers of the answer."""
    seen, sent = {}, []

    async def app(scope, receive, send):
        seen.update(scope)
        await send({"type": "http.response.start", "status": 200, "headers": list(answer_headers)})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", b"x"), *[(b"x-request-id", g) for g in given]]}
    await RequestIdMiddleware(app)(scope, None, send)
    return seen, sent[0]["headers"]


@pytest.mark.parametrize("sound", [b"a", b"0" * 128, b"!~:/{}@", b"my-request_1.2"])
async def test_a_sound_id_is_echoed_and_hidden_from_the_engine(sound):
    scope, headers = await pass_through([sound])
    assert headers == [(b"x-request-id", sound)]
    assert shown_id_of(scope) == sound.decode()
    inner = [value for name, value in scope["headers"] if name == b"x-request-id"]
    assert inner == [internal_id_of(scope).encode()]
    assert sound not in inner
    assert (b"host", b"x") in scope["headers"]


@pytest.mark.parametrize(
    "given",
    [[], [b""], [b"a b"], [b"a\tb"], [b"0" * 129], [b"\xc3\xa9"], [b"a\x7f"], [b"a", b"b"]],
)
async def test_any_other_id_is_replaced(given):
    scope, headers = await pass_through(given)
    assert headers == [(b"x-request-id", internal_id_of(scope).encode())]
    assert shown_id_of(scope) == internal_id_of(scope)


async def test_internal_ids_are_unique_and_the_answer_has_one_id():
    answers = [await pass_through([b"same"], [(b"X-Request-Id", b"engine's")]) for _ in range(50)]
    assert len({internal_id_of(scope) for scope, _ in answers}) == 50
    assert all(headers == [(b"x-request-id", b"same")] for _, headers in answers)


async def test_outside_of_the_middleware_there_is_an_internal_id_too():
    assert internal_id_of({}) != internal_id_of({})
    assert shown_id_of({}) is None


async def test_every_answer_carries_an_id(server):
    for path in ("/health/live", "/nope", "/v1/models"):
        answer = await server.client.get(path, headers={"x-request-id": "mine"})
        assert answer.headers.get_list("x-request-id") == ["mine"]
    answer = await server.complete("hi", adapter="nobody")
    assert answer.headers["x-request-id"]


async def test_an_answer_to_an_unexpected_failure_carries_it_too(server):
    async def fail(*_):
        raise RuntimeError("boom")

    server.engine.find_unready_reason = fail
    answer = await server.client.get("/health/ready", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert "boom" not in answer.text
