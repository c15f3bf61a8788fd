"""Spans of what a sequence does inside the engine, below whatever span its request came with.

Runs in: API process.

vLLM's `llm_request` span is one block with latencies as attributes. Here its parts are spans of their own, `queue`,
`prefill` and `decode`, with the adapter, its digest and the tenant. The engine core's instants are monotonic and its
process is on this machine, so one difference of clocks makes them wall-clock times.

Seam: `OutputProcessor.do_tracing` of vLLM 0.32, replaced on the instance. Can go once vLLM's spans have these parts.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from vllm.tracing import SpanKind, extract_trace_context, instrument_manual

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.types import RequestOrigin
from shadow_runtime.vllm_bridge.request import AdapterSource
from shadow_runtime.vllm_bridge.serving_request import find_origin


def observe_traces(processor: Any) -> None:
    """Add the parts' spans to those of `processor`, and keep the server's own probes out of both.

    Raises:
        UnsupportedStackError: the processor is not the one that this module knows.
    """
    do_tracing = getattr(processor, "do_tracing", None)
    if not callable(do_tracing):
        raise UnsupportedStackError("vLLM's output processor has no do_tracing")

    def trace(output: Any, req_state: Any, stats: Any) -> None:
        origin = find_origin(req_state)
        if origin is None:
            return
        do_tracing(output, req_state, stats)
        context = extract_trace_context(output.trace_headers)
        if context is not None:
            _write_parts(context, req_state, origin)

    processor.do_tracing = trace


def _write_parts(context: Any, req_state: Any, origin: RequestOrigin) -> None:
    times = req_state.stats
    offset = datetime.now(UTC).timestamp() - time.monotonic()
    instants = (times.queued_ts, times.scheduled_ts, times.first_token_ts, times.last_token_ts)
    nanoseconds = [int((instant + offset) * 1e9) for instant in instants]
    attributes = _attributes(req_state, origin)
    parts = zip(("queue", "prefill", "decode"), nanoseconds, nanoseconds[1:], strict=False)
    for name, start, end in parts:
        instrument_manual(
            span_name=name,
            start_time=start,
            end_time=end,
            attributes=attributes,
            context=context,
            kind=SpanKind.INTERNAL,
        )


def _attributes(req_state: Any, origin: RequestOrigin) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.request.id": req_state.external_req_id,
        "shadow.tenant": origin.tenant,
    }
    if req_state.lora_request is not None:
        found["shadow.adapter.name"] = origin.adapter
        found["shadow.adapter.digest"] = AdapterSource.from_uri(
            req_state.lora_request.lora_path
        ).digest
    return found
