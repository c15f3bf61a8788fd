"""Which adapter answers, how long it is held, and what the answer says about it."""

import asyncio
import json

import pytest

from fake_server import error_of, settle, until
from shadow_server.engine import AdapterName, RegistrySettings

BASE = "fake-base"


def entry(server, name="math", version=None):
    return server.engine.adapters.get(AdapterName("default", name), version)


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


async def test_base_answers_without_adapter_and_carries_no_adapter_headers(server):
    for fields in ({}, {"model": BASE}, {"model": None, "adapter": None}, {"adapter": None}):
        answer = await server.complete(**fields)
        assert text_of(answer) == "[base] hi there"
        assert "x-shadow-adapter" not in answer.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": "math"},
        {"model": "math"},
        {"model": f"{BASE}:math"},
        {"model": BASE, "adapter": "math"},
        {"model": "math", "adapter": "math"},
        {"model": f"{BASE}:math", "adapter": "math"},
        {"model": "math", "adapter": None},
        {"adapter": "math@1"},
        {"adapter": "default/math"},
        {"model": "default/math@1"},
        {"model": f"{BASE}:math@1", "adapter": "default/math"},
    ],
)
async def test_every_spelling_names_the_adapter(server, fields):
    digest = await server.load("math")
    answer = await server.complete(**fields)
    assert text_of(answer) == f"[math:{digest[-4:]}] hi there"
    assert answer.json()["model"] == "math"
    assert answer.headers["x-shadow-adapter"] == "math"
    assert answer.headers["x-shadow-adapter-version"] == "1"
    assert answer.headers["x-shadow-adapter-digest"] == digest


@pytest.mark.parametrize("fields", [{"model": "math"}, {"model": f"{BASE}:math"}])
async def test_two_different_adapters_are_a_conflict(server, fields):
    await server.load("math")
    await server.load("poet")
    answer = await server.complete(**fields, adapter="poet")
    error = error_of(answer)
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("adapter_conflict", "adapter")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"adapter": "nobody"}, "adapter_not_found"),
        ({"model": f"{BASE}:nobody"}, "adapter_not_found"),
        ({"model": BASE, "adapter": "math@2"}, "adapter_not_found"),
        ({"model": "nobody"}, "model_not_found"),
        ({"model": f"{BASE}:"}, "model_not_found"),
        ({"model": "math@2"}, "model_not_found"),
        ({"model": "nobody", "adapter": "math"}, "model_not_found"),
        ({"model": "nobody:math"}, "model_not_found"),
    ],
)
async def test_unknown_names_are_not_found_and_never_the_base(server, fields, code):
    await server.load("math")
    answer = await server.complete(**fields)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == code


@pytest.mark.parametrize("value", [1, 1.5, True, ["math"], {"a": 1}, "", "ma\0th", "a\nb"])
@pytest.mark.parametrize("field", ["adapter", "model"])
async def test_mistyped_names_are_refused(server, field, value):
    answer = await server.complete(**{field: value})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == field


async def test_chat_takes_the_adapter_too(server):
    digest = await server.load("math")
    body = {"messages": [{"role": "user", "content": "hi"}], "adapter": "math"}
    answer = await server.client.post("/v1/chat/completions", json=body)
    content = answer.json()["choices"][0]["message"]["content"]
    assert content == f"[math:{digest[-4:]}] hi"
    assert answer.headers["x-shadow-adapter-digest"] == digest


async def test_stream_carries_headers_usage_and_every_word(server):
    digest = await server.load("math")
    answer = await server.complete(
        adapter="math", stream=True, stream_options={"include_usage": True}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-shadow-adapter-digest"] == digest
    events = [e.removeprefix("data: ") for e in answer.text.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    words = "".join(c["choices"][0]["text"] for c in chunks[:-1])
    assert words == f"[math:{digest[-4:]}] hi there "


async def test_error_inside_a_stream_has_the_openai_shape(server):
    answer = await server.complete("one fail two", stream=True)
    events = [e.removeprefix("data: ") for e in answer.text.strip().split("\n\n")]
    errors = [json.loads(e)["error"] for e in events if '"error"' in e]
    assert errors == [
        {"message": "boom", "type": "server_error", "param": None, "code": "internal_error"}
    ]


async def test_other_prompt_forms_pass_through(server):
    assert text_of(await server.complete([3, 4])) == "[base] t3 t4"
    assert text_of(await server.complete([[3, 4]])) == "[base] t3 t4"
    answer = await server.complete(["a", "b"])
    assert [c["text"] for c in answer.json()["choices"]] == ["[base] a", "[base] b"]
    assert text_of(await server.complete("a", echo=True, max_tokens=1)) == "a [base]"


async def test_tokenizer_routes(server):
    answer = await server.client.post("/tokenize", json={"prompt": "a bb"})
    assert answer.json()["tokens"] == [1, 2]
    answer = await server.client.post("/detokenize", json={"tokens": [1, 2], "adapter": "nobody"})
    assert error_of(answer)["code"] == "adapter_not_found"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "many"},
        {"prompt": {"a": 1}},
        {"prompt": None},
        {"stream_options": {"include_usage": "maybe"}},
    ],
)
async def test_engine_validation_errors_have_the_openai_shape(server, fields):
    answer = await server.complete(**{"prompt": "hi", **fields})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"].split(".")[0] == next(iter(fields))
    assert "\n" not in error["message"]


async def test_engine_errors_get_string_codes(server):
    answer = await server.complete(max_tokens=1000)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["type"], error["message"]) == ("invalid_request_error", "too long")


async def test_lease_lasts_until_the_answer_and_a_replaced_adapter_finishes_its_own(server):
    old = await server.load("math", "one")
    server.engine.gate = asyncio.Event()
    running = asyncio.create_task(server.complete(adapter="math"))
    streaming = asyncio.create_task(server.complete(adapter="math", stream=True))
    await settle()
    assert entry(server).num_leases == 2
    new = await server.load("math", "two")
    assert new != old
    assert server.engine.loader.held == {old, new}
    assert (entry(server, version=1).num_leases, entry(server).num_leases) == (2, 0)
    late = asyncio.create_task(server.complete(adapter="math"))
    await settle()
    server.engine.gate.set()
    for task in (running, streaming):
        answer = await task
        assert answer.headers["x-shadow-adapter-digest"] == old
        assert answer.headers["x-shadow-adapter-version"] == "1"
        assert f"[math:{old[-4:]}]" in answer.text
    assert (await late).headers["x-shadow-adapter-version"] == "2"
    assert text_of(await late).startswith(f"[math:{new[-4:]}]")
    await until(lambda: server.engine.loader.slots == [new])


async def test_a_request_that_is_cancelled_gives_its_lease_back(server):
    await server.load("math")
    server.engine.gate = asyncio.Event()
    running = asyncio.create_task(server.complete(adapter="math"))
    await settle()
    assert entry(server).num_leases == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.engine.num_aborted == 1
    assert entry(server).num_leases == 0


async def test_a_request_that_fails_gives_its_lease_back(server):
    await server.load("math")
    for fields in ({"max_tokens": "many"}, {"max_tokens": 1000}):
        assert (await server.complete(adapter="math", **fields)).status_code == 400
    assert entry(server).num_leases == 0


async def test_an_old_version_answers_by_its_number(server):
    old, new = await server.load("math", "one"), await server.load("math", "two")
    for asked, version, digest in (("math", "2", new), ("math@2", "2", new), ("math@1", "1", old)):
        answer = await server.complete(adapter=asked)
        assert answer.headers["x-shadow-adapter-version"] == version
        assert answer.headers["x-shadow-adapter-digest"] == digest
        assert text_of(answer) == f"[math:{digest[-4:]}] hi there"
    assert error_of(await server.complete(adapter="math@3"))["code"] == "adapter_not_found"


@pytest.mark.parametrize("salt", ["a", "x" * 128, "é", "two words"])
async def test_cache_salts(server, salt):
    assert (await server.complete(cache_salt=salt)).status_code == 200


@pytest.mark.parametrize("salt", ["", "x" * 257, "a\x00", "a\nb", 1, True, ["a"], {"a": 1}])
async def test_cache_salts_that_are_refused(server, salt):
    answer = await server.complete(cache_salt=salt)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "cache_salt"


async def test_the_engine_sees_ids_of_ours_only(server):
    headers = {"x-request-id": "mine"}
    body = {"prompt": "hi"}
    for _ in range(2):
        answer = await server.client.post("/v1/completions", json=body, headers=headers)
        assert answer.headers["x-request-id"] == "mine"
    first, second = server.engine.tags
    assert "mine" not in {first.tag, second.tag}
    assert first.tag != second.tag
    assert (first.tenant, first.weight, first.cache_salt) == ("default", 1.0, None)


class TestWaiting:
    """A request for an adapter that the engine does not hold."""

    @pytest.fixture
    def registry_settings(self):
        return RegistrySettings(
            max_host_adapters=1, adapter_wait_seconds=0.3, retry_failed_seconds=0.0
        )

    @pytest.fixture
    async def waiting(self, server):
        """Return a server whose adapter `math` is on disk only, and cannot be loaded yet."""
        await server.load("math")
        await server.load("poet")
        assert entry(server).level == "disk"
        server.engine.loader.gate = asyncio.Event()
        return server

    async def test_it_waits_for_the_load(self, waiting):
        running = asyncio.create_task(waiting.complete(adapter="math"))
        await until(lambda: entry(waiting).num_leases == 1)
        assert not running.done()
        assert text_of(await waiting.complete()) == "[base] hi there"
        waiting.engine.loader.gate.set()
        assert (await running).headers["x-shadow-adapter"] == "math"

    async def test_it_is_told_to_come_again_when_that_takes_too_long(self, waiting):
        answer = await waiting.complete(adapter="math")
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "adapter_loading"
        assert int(answer.headers["retry-after"]) >= 1
        waiting.engine.loader.gate.set()
        await until(lambda: entry(waiting).num_leases == 0)

    async def test_a_client_that_leaves_gives_everything_back(self, waiting):
        sent = []
        left = asyncio.Event()
        body = json.dumps({"prompt": "hi", "adapter": "math"}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "root_path": "",
        }
        running = asyncio.create_task(waiting.app(scope, receive, send))
        await until(lambda: entry(waiting).num_leases == 1)
        left.set()
        await running
        await settle()
        assert sent == []
        assert entry(waiting).num_leases == 0
        assert waiting.engine.tags == []
        waiting.engine.loader.gate.set()
