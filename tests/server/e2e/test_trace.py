"""A request is one trace from its caller to the engine, and one JSON line of the log; neither holds its words."""

import itertools
import json
import time
from pathlib import Path

import httpx
import pytest

from running_server import START_SECONDS
from trace_collector import running_collector

pytestmark = pytest.mark.engine

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
WORDS = "private words of a customer"


@pytest.fixture(scope="module")
def traced(start_server):
    """Yield a client of a server that exports traces and logs JSON, the collector and the log."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with running_collector() as collector, patch.context():
        options = ("--otlp-traces-endpoint", collector.url, "--logging-config.formatter", "json")
        process, _ = start_server(*options)
        with process:
            process.wait_until_ready(START_SECONDS)
            with httpx.Client(base_url=process.url, timeout=60) as client:
                yield client, collector, process.log_path
    patch.undo()


def lines_of(log_path: Path, request_id: str, within_seconds: float = 30.0) -> list[dict]:
    """Return the log's lines of one request as soon as there is one: it is written after the last byte."""
    deadline = time.monotonic() + within_seconds
    while True:
        written = log_path.read_text().splitlines()
        lines = [
            json.loads(line) for line in written if line.startswith("{") and line.endswith("}")
        ]
        found = [line for line in lines if line.get("request_id") == request_id]
        if found:
            return found
        assert time.monotonic() < deadline, written[-20:]
        time.sleep(0.05)


def test_a_request_is_one_trace(traced):
    client, collector, _ = traced
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "x-request-id": "mine-1"}
    body = {"prompt": WORDS, "adapter": "french", "max_tokens": 5, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body, headers=headers)
    names = {"text_completion french", "llm_request", "queue", "prefill", "decode"}
    spans = collector.of_trace(TRACE_ID, names)
    root = spans["text_completion french"]
    assert root.parent_id == PARENT_ID
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{root.span_id}-01"
    for name in names - {root.name}:
        assert spans[name].parent_id == root.span_id
    assert root.attributes["gen_ai.operation.name"] == "text_completion"
    assert root.attributes["shadow.outcome"] == "ok"
    assert root.attributes["http.response.status_code"] == 200
    parts = [spans[name] for name in ("queue", "prefill", "decode")]
    digest = answer.headers["x-shadow-adapter-digest"]
    for part in parts:
        assert part.attributes["shadow.adapter.name"] == "french"
        assert part.attributes["shadow.adapter.digest"] == digest
        assert part.attributes["shadow.tenant"] == "default"
    # They follow each other inside the request; a few milliseconds are the difference of two processes' clocks.
    instants = [root.begins_at, *(p.begins_at for p in parts), parts[-1].ends_at, root.ends_at]
    assert [a for a, b in itertools.pairwise(instants) if a > b + 5_000_000] == []
    assert WORDS not in repr(collector.spans)


def test_a_request_without_a_trace_begins_one_and_probes_have_none(traced):
    client, collector, _ = traced
    answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
    trace_id = answer.headers["traceparent"].split("-")[1]
    spans = collector.of_trace(trace_id, {"text_completion base", "llm_request", "decode"})
    assert spans["text_completion base"].parent_id == ""
    ids = [span.attributes.get("gen_ai.request.id", "") for span in collector.spans]
    assert [name for name in ids if name.startswith("shadow-probe-")] == []


def test_the_log_is_json_with_one_line_for_each_request(traced):
    client, _, log_path = traced
    headers = {"x-request-id": "mine-2", "authorization": "Bearer sk-not-in-the-log"}
    body = {"prompt": WORDS, "adapter": "shout", "max_tokens": 2}
    digest = client.post("/v1/completions", json=body, headers=headers).headers[
        "x-shadow-adapter-digest"
    ]
    (line,) = lines_of(log_path, "mine-2")
    assert (line["adapter"], line["adapter_digest"], line["tenant"]) == ("shout", digest, "default")
    assert (line["outcome"], line["status"]) == ("ok", 200)
    text = log_path.read_text()
    assert WORDS not in text
    assert "sk-not-in-the-log" not in text
