"""Publishing without waiting, with progress events, and when the client leaves."""

import asyncio
import json
import threading

import pytest

from fake_server import error_of, until
from shadow_runtime.errors import AdapterLimitError
from shadow_server.admin.progress import ProgressFeed
from shadow_server.tenancy.identity import Identity
from shadow_server.tenancy.quota import TenantQuotas


def events_of(answer) -> list[tuple[str, dict]]:
    """Return (name, data) of each event; the last line of all must be [DONE]."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    lines = [block.split("\n") for block in blocks]
    assert all(len(pair) == 2 for pair in lines)
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in lines
    ]


async def test_stream_tells_the_progress_and_the_adapter(server):
    path = server.write_adapter("math", "x" * 1000)
    body = {"name": "math", "path": path, "stream": True}
    answer = await server.client.post("/v1/adapters", json=body)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    events = events_of(answer)
    names = [name for name, _ in events]
    assert names == ["reading", "validated", "loading", "registered", "resident", "published"]
    details = dict(events)
    assert details["reading"] == {"num_bytes": 1000, "total_bytes": 1000}
    assert details["registered"] == {"version": 1}
    card = (await server.client.get("/v1/adapters/math")).json()
    assert details["published"] == card
    assert details["validated"] == {"digest": card["digest"]}


async def test_stream_without_waiting_ends_at_registered(server):
    server.engine.loader.gate = asyncio.Event()
    path = server.write_adapter("math")
    body = {"name": "math", "path": path, "stream": True, "wait": False}
    events = events_of(await server.client.post("/v1/adapters", json=body))
    assert [name for name, _ in events] == ["reading", "validated", "registered", "published"]
    assert events[-1][1]["state"] == "LOADING"
    server.engine.loader.gate.set()


@pytest.mark.parametrize(
    ("content", "code"), [("broken", "adapter_tensor_invalid"), (None, "adapter_file_invalid")]
)
async def test_a_failure_after_the_stream_began_is_an_event(server, content, code):
    if content is None:
        (server.root / "bad").mkdir()
    else:
        server.write_adapter("bad", content)
    body = {"name": "bad", "path": "bad", "stream": True}
    answer = await server.client.post("/v1/adapters", json=body)
    assert answer.status_code == 200
    name, data = events_of(answer)[-1]
    assert name == "error"
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert (data["error"]["code"], data["error"]["type"]) == (code, "invalid_request_error")
    assert str(server.root) not in answer.text
    assert "0x7f" not in answer.text


async def test_an_unforeseen_failure_in_a_stream_tells_nothing(server):
    server.engine.loader.failure = RuntimeError("secret")
    body = {"name": "math", "path": server.write_adapter("math"), "stream": True}
    answer = await server.client.post("/v1/adapters", json=body)
    assert events_of(answer)[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_a_request_that_is_refused_before_the_stream_has_its_status(server):
    for body, status in (({"name": "..", "path": "x"}, 400), ({"name": "a", "path": "x"}, 404)):
        answer = await server.client.post("/v1/adapters", json=body | {"stream": True})
        assert answer.status_code == status
        error_of(answer)


async def test_without_waiting_the_answer_is_202_and_the_load_follows(server):
    server.engine.loader.gate = asyncio.Event()
    body = {"name": "math", "path": server.write_adapter("math"), "wait": False}
    answer = await server.client.post("/v1/adapters", json=body)
    assert answer.status_code == 202
    assert answer.json()["state"] == "LOADING"
    assert answer.json()["level"] == "disk"
    waiting = await server.complete(adapter="math")
    assert waiting.status_code == 503
    assert error_of(waiting)["code"] == "adapter_loading"
    assert waiting.headers["retry-after"] == "1"
    server.engine.loader.gate.set()
    await until(lambda: server.engine.loader.held)
    assert (await server.complete(adapter="math")).status_code == 200
    assert (await server.client.post("/v1/adapters", json=body)).status_code == 200


async def test_a_load_that_fails_after_202_shows_why(server):
    server.engine.loader.failure = AdapterLimitError("it fits no slot of /opt/engine/x.cu")
    body = {"name": "math", "path": server.write_adapter("math"), "wait": False}
    assert (await server.client.post("/v1/adapters", json=body)).status_code == 202
    entry = server.engine.adapters.entries()[0]
    await until(lambda: entry.state == "FAILED")
    card = (await server.client.get("/v1/adapters/math")).json()
    assert (card["state"], card["failure"]) == ("FAILED", "it fits no slot of <path>")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_does_not_end_its_publish(server, is_stream):
    server.engine.loader.gate = asyncio.Event()
    body = {"name": "math", "path": server.write_adapter("math"), "stream": is_stream}
    leaving = asyncio.create_task(server.client.post("/v1/adapters", json=body))
    await until(lambda: server.engine.loader.num_loads == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    server.engine.loader.gate.set()
    await until(lambda: server.engine.loader.held)
    await until(lambda: server.engine.adapters.entries())
    assert (await server.client.get("/v1/adapters/math")).json()["state"] == "RESIDENT"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_while_files_are_copied_does_not_end_it(
    server, monkeypatch, is_stream
):
    copying, may_copy = threading.Event(), threading.Event()
    store = server.engine.adapters.store
    stage = store.stage_directory

    def slow(*args, **kwargs):
        copying.set()
        assert may_copy.wait(10)
        return stage(*args, **kwargs)

    monkeypatch.setattr(store, "stage_directory", slow)
    body = {"name": "math", "path": server.write_adapter("math"), "stream": is_stream}
    leaving = asyncio.create_task(server.client.post("/v1/adapters", json=body))
    await until(copying.is_set)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    may_copy.set()
    await until(server.engine.adapters.entries)
    assert (await server.client.get("/v1/adapters/math")).json()["state"] == "RESIDENT"


async def test_publishing_is_counted_against_the_callers_quota(server):
    quotas = TenantQuotas(max_adapters=1, max_stored_bytes=2000)
    identity = Identity(tenant="acme", role="user", quotas=quotas)
    admin = Identity(tenant="ops", role="admin", quotas=TenantQuotas(max_adapters=1))
    async with server.caller(identity) as acme, server.caller(admin) as ops:
        await server.load("one", "x" * 900, acme)
        await server.load("one", "y" * 900, acme)
        for name, text in (("two", "z"), ("one", "z" * 900)):
            path = server.write_adapter(name, text)
            answer = await acme.post("/v1/adapters", json={"name": name, "path": path})
            assert answer.status_code == 429
            assert error_of(answer)["code"] == "insufficient_quota"
            assert answer.headers["retry-after"] == "60"
            assert answer.headers["x-should-retry"] == "false"
        await server.load("acme/two", "w", ops)
        await server.load("acme/three", "v", ops)


async def test_a_feed_nobody_reads_stays_small_and_keeps_the_order():
    feed = ProgressFeed()
    work = asyncio.get_running_loop().create_future()

    def read_much():
        for i in range(10_000):
            feed.tell("reading", {"num_bytes": i})
        feed.tell("validated", {})

    await asyncio.to_thread(read_much)
    work.set_result(None)
    events = [event async for event in feed.follow(work)]
    assert events == [("reading", {"num_bytes": 9999}), ("validated", {})]


async def test_a_feed_tells_what_comes_while_it_is_read():
    feed = ProgressFeed()
    work = asyncio.get_running_loop().create_future()
    seen = []

    async def follow():
        async for stage, _ in feed.follow(work):
            seen.append(stage)

    following = asyncio.create_task(follow())
    for stage in ("reading", "validated", "loading"):
        await asyncio.to_thread(feed.tell, stage, {})
        await until(lambda stage=stage: seen[-1:] == [stage])
    work.set_exception(RuntimeError("why"))
    await following
    assert seen == ["reading", "validated", "loading"]
    assert work.exception() is not None


class TestResidentQuota:
    """A publish loads, so it needs room among the tenant's resident adapters."""

    @pytest.fixture
    def acme(self, server):
        quotas = TenantQuotas(max_resident_adapters=1)
        return server.caller(Identity(tenant="acme", role="user", quotas=quotas))

    def resident(self, server):
        entries = server.engine.adapters.entries("acme")
        return {entry.name.name for entry in entries if entry.level != "disk"}

    async def test_a_publish_takes_the_place_of_another(self, server, acme):
        await server.load("one", client=acme)
        await server.load("two", client=acme)
        assert self.resident(server) == {"two"}
        assert (await acme.get("/v1/adapters/one")).json()["level"] == "disk"

    async def test_what_is_pinned_does_not_make_room(self, server, acme):
        await server.load("one", client=acme)
        await acme.post("/v1/adapters/one/pin")
        path = server.write_adapter("two")
        answer = await acme.post("/v1/adapters", json={"name": "two", "path": path})
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "insufficient_quota"
        assert (await acme.get("/v1/adapters/two")).status_code == 404
        # An admin's publish, and one for another tenant, are not the tenant's own.
        await server.load("acme/two")
        assert self.resident(server) == {"one", "two"}

    @pytest.mark.parametrize("change", ["pin", "rollback"])
    async def test_a_pin_and_a_rollback_load_too(self, server, acme, change):
        await server.load("one", client=acme)
        await server.load("one", "other bytes", client=acme)
        await server.load("two", client=acme)
        answer = await acme.post(f"/v1/adapters/one/{change}")
        assert answer.status_code in (200, 201)
        assert self.resident(server) == {"one"}
        assert server.engine.adapters.num_resident("acme") == 1

    @pytest.mark.parametrize("change", ["pin", "rollback"])
    async def test_where_nothing_can_leave_they_are_refused(self, server, acme, change):
        await server.load("one", client=acme)
        await server.load("one", "other bytes", client=acme)
        await server.load("two", client=acme)
        assert (await acme.post("/v1/adapters/two/pin")).status_code == 200
        answer = await acme.post(f"/v1/adapters/one/{change}")
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "insufficient_quota"
        card = (await acme.get("/v1/adapters/one")).json()
        assert (card["version"], card["pinned"]) == (2, False)
        assert self.resident(server) == {"two"}

    async def test_a_version_that_requests_hold_can_be_replaced(self, server, acme):
        await server.load("one", client=acme)
        server.engine.gate = asyncio.Event()
        body = {"prompt": "hi", "adapter": "one", "stream": True}
        running = asyncio.create_task(acme.post("/v1/completions", json=body))
        await until(lambda: server.engine.adapters.entries("acme")[0].num_leases == 1)
        digest = await server.load("one", "other bytes", client=acme)
        answer = await acme.post(
            "/v1/adapters", json={"name": "two", "path": server.write_adapter("two")}
        )
        assert answer.status_code == 429
        server.engine.gate.set()
        assert (await running).headers["x-shadow-adapter-version"] == "1"
        entries = server.engine.adapters.entries
        await until(lambda: [entry.digest for entry in entries("acme")] == [digest])

    async def test_publishes_at_once_stay_within_the_quota(self, server, acme):
        for name in "abcd":
            server.write_adapter(name)
        await asyncio.gather(*(server.load(name, client=acme) for name in "abcd"))
        assert len(self.resident(server)) == 1
