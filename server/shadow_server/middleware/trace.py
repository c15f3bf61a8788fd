"""One span for each request for generation: below the caller's, above the engine's.

Runs in: API process. Attached only where the engine exports traces (`--otlp-traces-endpoint`).

W3C Trace Context in and out: a caller's `traceparent` is the span's parent, the engine gets the span as the parent of
its own, and the answer's `traceparent` names it. Names and attributes follow OpenTelemetry's GenAI conventions; ours
begin with `shadow.`. Neither prompts nor answers nor keys are in them.
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import UTC, datetime

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shadow_server.engine import LoadSource, RegistryEvents
from shadow_server.middleware.access import route_path
from shadow_server.observability.record import RequestRecord
from shadow_server.openai.account import SPAN_KEY

OPERATIONS = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat"}
"""The GenAI operation of each route that is traced."""

_HEADERS = (b"traceparent", b"tracestate")
_SYSTEM = "shadowserve"
_MIN_WAIT_SECONDS = 0.001

_propagator = TraceContextTextMapPropagator()


class RequestSpan:
    """The span of one request, in its scope until the answer is complete."""

    def __init__(self, span: Span, operation: str) -> None:
        self.span = span
        self._operation = operation

    def headers(self) -> dict[str, str]:
        """Return the headers that name this span as a parent."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self.span))
        return carrier

    def add_wait(self, seconds: float, adapter: str) -> None:
        """Add a span for a wait for an adapter that ended just now; short ones are no waits."""
        if seconds < _MIN_WAIT_SECONDS:
            return
        _write_past("adapter_wait", seconds, self, {"shadow.adapter.name": adapter})

    def describe(self, record: RequestRecord) -> None:
        """Write how the request ended into the span."""
        model = record.adapter or "base"
        self.span.update_name(f"{self._operation} {model}")
        attributes = {
            "gen_ai.request.model": model,
            "gen_ai.response.id": record.request_id,
            "shadow.tenant": record.tenant,
            "shadow.adapter.name": record.adapter,
            "shadow.adapter.version": record.adapter_version,
            "shadow.adapter.digest": record.adapter_digest,
            "shadow.outcome": record.outcome,
            "http.response.status_code": record.status,
        }
        self.span.set_attributes({k: v for k, v in attributes.items() if v is not None})
        if record.outcome == "error":
            self.span.set_status(Status(StatusCode.ERROR))


_running: ContextVar[RequestSpan | None] = ContextVar("running", default=None)
"""The traced request of this context; the tasks that it starts inherit it, a load of its adapter among them."""


def _write_past(
    name: str, seconds: float, parent: RequestSpan | None, attributes: dict[str, str]
) -> None:
    """Write a span that ended just now; without a parent it is a trace of its own."""
    end = int(datetime.now(UTC).timestamp() * 1e9)
    span = trace.get_tracer(__name__).start_span(
        name,
        context=Context() if parent is None else trace.set_span_in_context(parent.span),
        start_time=end - int(seconds * 1e9),
        attributes=attributes,
    )
    span.end(end)


class TracedEvents:
    """Writes a span for each load of an adapter, below the request that asked for it, and passes all events on."""

    def __init__(self, inner: RegistryEvents) -> None:
        self._inner = inner
        self.on_evict, self.on_wait = inner.on_evict, inner.on_wait

    def on_load(self, seconds: float, source: LoadSource, result: str) -> None:
        """See `RegistryEvents`."""
        self._inner.on_load(seconds, source, result)
        attributes = {"shadow.load.source": source, "shadow.load.result": result}
        _write_past("adapter_load", seconds, _running.get(), attributes)


class TraceMiddleware:
    """Opens and closes the spans."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application inside a span if the request is one for generation."""
        operation = OPERATIONS.get(route_path(scope)) if scope["type"] == "http" else None
        if operation is None:
            await self._app(scope, receive, send)
            return
        given = {k.decode(): v.decode("latin-1") for k, v in scope["headers"] if k in _HEADERS}
        span = trace.get_tracer(__name__).start_span(
            operation,
            context=_propagator.extract(given),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": operation, "gen_ai.provider.name": _SYSTEM},
        )
        try:
            await self._run(RequestSpan(span, operation), scope, receive, send)
        finally:
            span.end()

    async def _run(self, span: RequestSpan, scope: Scope, receive: Receive, send: Send) -> None:
        own = [(name.encode(), value.encode()) for name, value in span.headers().items()]
        rest = [header for header in scope["headers"] if header[0] not in _HEADERS]
        # In place: error handlers outside have the same scope.
        scope["headers"], scope[SPAN_KEY] = rest + own, span
        _running.set(span)

        async def send_with_parent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await self._app(scope, receive, send_with_parent)
