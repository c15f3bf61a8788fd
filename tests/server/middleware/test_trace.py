"""Spans of requests: who is whose parent, what is in them, and what is not."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from fake_server import Server, client_of, until
from shadow_server.app import build_app
from shadow_server.engine import RegistrySettings
from shadow_server.fake_engine import FakeEngine

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@pytest.fixture
def finished(monkeypatch):
    """Return a function that returns the finished spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter.get_finished_spans
    provider.shutdown()


@pytest.fixture
async def traced(engine, adapter_root, settings, finished):
    engine.is_traced = True
    app = build_app(engine, settings, engine.registry)
    async with client_of(app) as client:
        yield Server(engine, client, adapter_root, settings, app)


async def test_the_callers_span_is_the_parent_and_the_answer_names_ours(traced, finished):
    await traced.load("math")
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "authorization": "Bearer sk-secret"}
    body = {"prompt": "private words", "adapter": "math"}
    answer = await traced.client.post("/v1/completions", json=body, headers=headers)
    _, span = finished()  # after the load's
    assert (span.name, span.kind) == ("text_completion math", trace.SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert span.attributes["gen_ai.operation.name"] == "text_completion"
    assert span.attributes["gen_ai.request.model"] == "math"
    assert span.attributes["shadow.outcome"] == "ok"
    assert span.attributes["shadow.adapter.digest"].startswith("sha256:")
    assert "private" not in span.to_json()
    assert "secret" not in span.to_json()


async def test_a_malformed_parent_is_none_and_other_routes_are_not_traced(traced, finished):
    await traced.client.get("/v1/models")
    assert finished() == ()
    await traced.client.post(
        "/v1/completions", json={"prompt": "a"}, headers={"traceparent": "00-nonsense"}
    )
    (span,) = finished()
    assert span.parent is None
    assert span.name == "text_completion base"


async def test_a_wait_for_an_adapter_is_a_span(traced, finished):
    traced.engine.loader.gate = asyncio.Event()
    body = {"name": "slow", "path": traced.write_adapter("slow"), "wait": False}
    await traced.client.post("/v1/adapters", json=body)
    assert (await traced.complete(adapter="slow")).status_code == 503
    wait, request = finished()
    assert (wait.name, wait.parent.span_id) == ("adapter_wait", request.context.span_id)
    assert wait.end_time - wait.start_time >= 0.2e9
    assert wait.attributes["shadow.adapter.name"] == "slow"
    assert request.attributes["shadow.outcome"] == "rejected"
    traced.engine.loader.gate.set()
    await until(lambda: traced.engine.loader.held)


async def test_a_load_is_below_the_request_that_asked_for_it(
    tmp_path, adapter_root, settings, finished
):
    one = RegistrySettings(adapter_wait_seconds=5.0, max_host_adapters=1)
    async with FakeEngine.open(tmp_path / "state", CollectorRegistry(), one) as engine:
        engine.is_traced = True
        app = build_app(engine, settings, engine.registry)
        async with client_of(app) as client:
            server = Server(engine, client, adapter_root, settings, app)
            await server.load("a")
            await server.load("b")  # there is room for one, so a has left
            published = finished()
            await server.complete(adapter="a")
    assert [(span.name, span.parent) for span in published] == [("adapter_load", None)] * 2
    spans = {span.name: span for span in finished()[2:]}
    load, request = spans["adapter_load"], spans["text_completion a"]
    assert load.parent.span_id == request.context.span_id
    assert load.attributes == {"shadow.load.source": "store", "shadow.load.result": "ok"}
    assert request.start_time <= load.start_time + 1_000_000


async def test_a_failed_stream_is_an_error(traced, finished):
    await traced.complete("fail now", stream=True)
    (span,) = finished()
    assert span.status.status_code is trace.StatusCode.ERROR


async def test_without_traces_headers_pass_untouched(server):
    answer = await server.complete()
    assert "traceparent" not in answer.headers
