"""What vLLM's handlers see of the registry."""

import asyncio
import time
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
from vllm.entrypoints.openai.completion import api_router as completion_routes
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.entrypoints.serve.tokenize import api_router as tokenize_routes
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.output_processor import OutputProcessor

from fake_server import error_of
from shadow_runtime.catalog.record import ArtifactRecord, VersionRecord
from shadow_runtime.registry import AdapterEntry, AdapterState
from shadow_runtime.types import AdapterName, RequestTag
from shadow_runtime.vllm_bridge.control import EngineControl
from shadow_runtime.vllm_bridge.request import AdapterSource, adapter_int_id, adapter_name
from shadow_runtime.vllm_bridge.request_tag import combine_salts, running_request, tag_fields
from shadow_runtime.vllm_bridge.serving_args import make_parser, parse
from shadow_runtime.vllm_bridge.serving_engine import AdapterRequests, VllmEngine
from shadow_server.app import build_app
from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings


class Names:
    """As much of a registry as the look-up needs: entries come and go."""

    def __init__(self):
        self.live = []

    def entries(self):
        return list(self.live)

    def find_by_key(self, key):
        return next((entry for entry in self.live if entry.key == key), None)


def make_entry(library, name, adapter, version=1, tenant="default"):
    """Return a resident entry of an adapter on disk."""
    manifest = library.manifests[adapter]
    artifact = ArtifactRecord(manifest, manifest.tensor_bytes)
    record = VersionRecord(AdapterName(tenant, name), version, artifact, "publish", "test", 0)
    return AdapterEntry(record, manifest, AdapterState.RESIDENT)


def test_keys_live_as_long_as_their_entry(library):
    registry = Names()
    requests = AdapterRequests(registry)
    old, new = make_entry(library, "math", "a"), make_entry(library, "math", "b", version=2)
    assert old.key not in requests
    registry.live = [old, new]
    assert requests[old.key].lora_int_id == adapter_int_id(old.digest)
    assert requests[new.key].lora_int_id == adapter_int_id(new.digest)
    assert AdapterSource.from_uri(requests[new.key].lora_path).path == new.manifest.path
    assert "math" not in requests
    assert "default/math" not in requests
    assert set(requests) == {old.key, new.key}
    registry.live = [new]
    assert old.key not in requests
    assert len(requests) == 1
    with pytest.raises(KeyError):
        requests[old.key]


@pytest.mark.parametrize(("tenant", "shown"), [("default", "math"), ("acme", "acme/math")])
def test_vllm_shows_the_name_that_people_see(library, tenant, shown):
    registry = Names()
    entry = make_entry(library, "math", "a", tenant=tenant)
    registry.live = [entry]
    request = AdapterRequests(registry)[entry.key]
    assert request.lora_name == entry.digest
    assert adapter_name(request) == shown


def test_vllm_finds_no_adapter_by_content_type(library):
    registry = Names()
    entry = make_entry(library, "text", "a")
    registry.live = [entry]
    handle = Named("text")
    serving = BaseServing.__new__(BaseServing)
    serving.models = Models(AdapterRequests(registry))
    request = Chat([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    assert serving._get_active_default_mm_loras(request) is None
    # The trap is real: with an ordinary dict the base request would get that adapter.
    serving.models = Models({"text": handle})
    assert serving._get_active_default_mm_loras(request) is handle


@dataclass(frozen=True)
class Named:
    lora_name: str


@dataclass
class Models:
    lora_requests: object


@dataclass
class Chat:
    messages: list


TAG = RequestTag("t1", "acme", 2.0, "salt")
MESSAGES = [{"role": "user", "content": "hi"}]


async def called(monkeypatch, engine, method, body, adapter=None):
    """Return what vLLM's handler is called with."""
    seen = []

    async def handler(asked, request):
        seen.append((asked, running_request.get()))
        return Response()

    routes = {
        "complete": (completion_routes, "create_completion"),
        "chat": (chat_routes, "create_chat_completion"),
        "tokenize": (tokenize_routes, "tokenize"),
        "detokenize": (tokenize_routes, "detokenize"),
    }
    monkeypatch.setattr(*routes[method], handler)
    # As a server does it, in a task of its own: what the handler's context carries ends with it.
    await asyncio.create_task(getattr(engine, method)(body, None, adapter, TAG))
    return seen[0]


@pytest.mark.parametrize(
    ("method", "body"), [("complete", {"prompt": "hi"}), ("chat", {"messages": MESSAGES})]
)
async def test_generation_carries_the_tag_into_the_sampling_parameters(
    library, monkeypatch, method, body
):
    engine = make_engine()
    entry = make_entry(library, "math", "a")
    client = {"cache_salt": "mine", "vllm_xargs": {"shadow_tenant": "victim", "session_id": "s"}}
    asked, running = await called(monkeypatch, engine, method, body | client | {"n": 2}, entry)
    assert asked.model == entry.key
    params = asked.to_sampling_params(8, {})
    assert (params.n, params.extra_args) == (2, {"session_id": "s"} | tag_fields(TAG))
    assert asked.cache_salt == combine_salts("salt", "mine")
    assert running.tag is TAG
    # What beam search makes of a request has no place for the tag: that is what the context is for.
    assert not hasattr(asked.to_beam_search_params(8, {}), "extra_args")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("tokenize", {"prompt": "hi"}),
        ("tokenize", {"messages": MESSAGES}),
        ("detokenize", {"tokens": [1]}),
    ],
)
async def test_the_tokenizer_ignores_the_tag(library, monkeypatch, method, body):
    asked, running = await called(monkeypatch, make_engine(), method, body)
    assert asked.model == "base"
    assert running is None


@pytest.mark.parametrize(
    "wrong",
    [{"cache_salt": ""}, {"cache_salt": 7}, {"vllm_xargs": "text"}, {"vllm_xargs": {"a": {}}}],
)
async def test_what_a_client_sends_is_validated_as_its_own(monkeypatch, wrong):
    with pytest.raises((RequestValidationError, VLLMValidationError)):
        await called(monkeypatch, make_engine(), "complete", {"prompt": "hi"} | wrong)


@pytest.mark.parametrize("value", [[], [[]], "json", 1, True, 0.5])
@pytest.mark.parametrize("method", ["complete", "chat"])
async def test_fields_that_vllms_validators_stumble_over_are_the_clients_mistake(
    monkeypatch, method, value
):
    body = {"prompt": "hi"} if method == "complete" else {"messages": MESSAGES}
    with pytest.raises(RequestValidationError):
        await called(monkeypatch, make_engine(), method, body | {"structured_outputs": value})
    if method == "chat":
        with pytest.raises(RequestValidationError):
            await called(monkeypatch, make_engine(), method, {"messages": 7})


async def test_a_name_that_nobody_leased_never_reaches_vllm(monkeypatch):
    with pytest.raises(ValueError, match="neither a leased adapter nor the base"):
        await called(monkeypatch, make_engine(), "complete", {"prompt": "hi", "model": "math"})


async def test_schemas_describe_every_generation_route():
    schemas = make_engine().request_schemas()
    assert "prompt" in schemas["/v1/completions"]["properties"]
    assert "messages" in schemas["/v1/chat/completions"]["properties"]
    assert "tokens" in schemas["/detokenize"]["properties"]
    assert len(schemas["/tokenize"]["anyOf"]) == 2


async def no_abort(request_ids, internal):
    """As vLLM's: nothing to abort."""


def make_engine(*words, registry=None, on_shutdown=lambda timeout: None):
    """Return an engine over a client that is never asked for anything."""
    parser = make_parser()
    args = parse(parser, ["base", *words])
    client = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=64),
        errored=False,
        shutdown=lambda timeout=None: on_shutdown(timeout),
        output_processor=OutputProcessor(None, log_stats=True),
        abort=no_abort,
        engine_core=SimpleNamespace(core_engines=[b"only"]),
    )
    return VllmEngine(client, args, None, ("generate",), registry, EngineControl(client, None))


@pytest.fixture
async def adapters(tmp_path):
    """Return a real registry whose adapters nobody asks for."""
    async with FakeEngine.open(tmp_path, CollectorRegistry()) as fake:
        yield fake.adapters


async def test_key_guards_our_routes_as_it_guards_vllms_and_401_has_the_one_shape(adapters):
    engine = make_engine("--api-key", "secret", registry=adapters)
    registry = CollectorRegistry()
    app = build_app(engine, ServerSettings(), registry)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for method, path in [
            ("GET", "/v1/adapters"),
            ("POST", "/v1/adapters"),
            ("DELETE", "/v1/adapters/math"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
        ]:
            answer = await client.request(method, path, json={"adapter": "nobody"})
            assert answer.status_code == 401, path
            assert error_of(answer)["code"] == "invalid_api_key"
        headers = {"authorization": "Bearer secret"}
        assert (await client.get("/v1/adapters", headers=headers)).status_code == 200
        for path in ("/version", "/metrics", "/health/live"):
            assert (await client.get(path)).status_code == 200


async def test_only_known_routes_are_attached(adapters):
    app = build_app(make_engine(registry=adapters), ServerSettings(), CollectorRegistry())
    assert {route.path for route in app.routes} == {
        "/metrics",
        "/health",
        "/ping",
        "/version",
        "/load",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/v1/models",
        "/v1/models/{name:path}",
        "/v1/adapters",
        "/v1/adapters/validate",
        "/v1/adapters/{name:path}",
        "/v1/adapters/{name:path}/versions",
        "/v1/adapters/{name:path}/rollback",
        "/v1/adapters/{name:path}/pin",
        "/v1/adapters/{name:path}/unpin",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/health/live",
        "/health/ready",
        "/console",
        "/console/{file}",
        "/openapi.json",
        "/docs",
    }


@pytest.mark.parametrize(("num_engines", "world_size"), [(1, 2), (2, 1)])
async def test_readiness_asks_every_worker(num_engines, world_size):
    engine = make_engine()
    engine._client.engine_core.core_engines = [b"core"] * num_engines
    parallel = SimpleNamespace(world_size=world_size)
    engine._client.vllm_config = SimpleNamespace(parallel_config=parallel)

    async def reason_of(workers):
        async def worker_status():
            if isinstance(workers, Exception):
                raise workers
            return workers

        engine.control.worker_status = worker_status
        engine._probe = None
        return await engine.find_unready_reason()

    assert await reason_of([{"active": True}] * 2) is None
    assert "1 workers do not run" in await reason_of([{"active": True}, {"active": False}])
    assert "1 of 2" in await reason_of([{"active": True}])
    assert "could not be asked" in await reason_of(RuntimeError("secret"))
    engine._client.errored = True
    assert await reason_of([{"active": True}] * 2) == "The engine has stopped"
    engine._client.errored = False
    engine._client.shutdown(timeout=1)
    assert await reason_of([{"active": True}] * 2) == "The server is stopping"


async def test_workers_that_are_late_are_believed_what_they_said_last():
    engine = make_engine()
    engine._client.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(world_size=1))
    step = asyncio.Event()
    step.set()

    async def worker_status():
        await step.wait()
        return [{"active": True}]

    async def timed_reason():
        started_at = time.monotonic()
        reason = await engine.find_unready_reason()
        return reason, time.monotonic() - started_at

    engine.control.worker_status = worker_status
    assert (await timed_reason())[0] is None
    step.clear()
    engine._probed_at -= 2  # the answer is no longer fresh
    reason, seconds = await timed_reason()
    assert reason is None
    assert seconds < 1.5
    engine._probed_at -= 2
    reason, seconds = await timed_reason()  # one question to them is enough
    assert reason is None
    assert seconds < 0.5
    step.set()
    assert (await timed_reason())[0] is None


async def test_workers_that_never_answered_are_not_ready():
    engine = make_engine()
    engine.control.worker_status = asyncio.Event().wait
    async with asyncio.timeout(2):
        assert "have not answered yet" in await engine.find_unready_reason()


async def test_the_engine_stops_when_the_requests_have_ended_and_not_before():
    told = []
    engine = make_engine(on_shutdown=lambda timeout: told.append((timeout, next(counts, None))))
    counts = iter([2, 2, 1, 0])
    engine.drain_with(lambda: next(counts))
    await asyncio.to_thread(engine._client.shutdown, timeout=60)
    ((left, count),) = told
    assert count is None  # asked until there were none
    assert 50 < left < 60


async def test_requests_have_no_more_than_their_time():
    told = []
    engine = make_engine(on_shutdown=told.append)
    engine.drain_with(lambda: 1)
    await asyncio.to_thread(engine._client.shutdown, timeout=0.1)
    assert told == [1.0]  # the processes' own time to end
    await asyncio.to_thread(engine._client.shutdown)
    assert told == [1.0, None]


async def test_what_has_not_ended_in_time_is_aborted_before_the_engine_is_stopped():
    events = []
    engine = make_engine(on_shutdown=lambda _: events.append("stopped"))
    states = engine._client.output_processor.request_states

    async def abort(request_ids, internal):
        await asyncio.sleep(0)
        events.append((request_ids, internal))
        states.clear()

    engine._client.abort = abort
    states["late"] = None
    engine.drain_with(lambda: len(states))
    await asyncio.to_thread(engine._client.shutdown, timeout=0.1)
    assert events == [(["late"], True), "stopped"]


async def test_an_engine_that_cannot_abort_is_stopped_all_the_same(caplog):
    events = []

    async def abort(request_ids, internal):
        raise RuntimeError("gone")

    engine = make_engine(on_shutdown=events.append)
    engine._client.abort = abort
    engine.drain_with(lambda: 1)
    await asyncio.to_thread(engine._client.shutdown, timeout=0.1)
    assert events == [1.0]
    assert "could not be aborted" in caplog.text


async def test_a_shutdown_within_the_loop_does_not_wait_for_the_loop():
    events = []
    engine = make_engine(on_shutdown=events.append)
    engine.drain_with(lambda: pytest.fail("nothing can end meanwhile"))
    engine._client.shutdown(timeout=60)
    assert events == [60]
