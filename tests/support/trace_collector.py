"""An OTLP/HTTP collector of spans, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class CollectedSpan:
    """One span; ids are hexadecimal, instants nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begins_at: int
    ends_at: int
    attributes: dict[str, Any]


@dataclass
class TraceCollector:
    """Keeps every span that it is sent.

    Attributes:
        url: of the traces endpoint.
        spans: in the order of their arrival.
    """

    url: str
    spans: list[CollectedSpan] = field(default_factory=list)

    def of_trace(
        self, trace_id: str, names: set[str], within_seconds: float = 30.0
    ) -> dict[str, CollectedSpan]:
        """Return the spans of one trace by name as soon as `names` are among them."""
        deadline = time.monotonic() + within_seconds
        while True:
            found = {span.name: span for span in list(self.spans) if span.trace_id == trace_id}
            if names <= found.keys():
                return found
            assert time.monotonic() < deadline, (names - found.keys(), found.keys())
            time.sleep(0.05)

    def take(self, body: bytes) -> None:
        """Take one request of an exporter."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(map(_span, scope.spans))


def _span(span: Any) -> CollectedSpan:
    attributes = {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
    }
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    times = (span.start_time_unix_nano, span.end_time_unix_nano)
    return CollectedSpan(span.name, *ids, *times, attributes)


@contextmanager
def running_collector() -> Iterator[TraceCollector]:
    """Listen on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = TraceCollector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
