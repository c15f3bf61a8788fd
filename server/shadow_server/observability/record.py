"""One line of the log for each request for generation.

Runs in: API process.

It names the request, who asked and which adapter's bytes answered, and holds nothing that a client wrote but its
request id and the adapter's name: never a prompt, an answer or a key. With `--logging-config.formatter json` its fields
are fields of the line's JSON object, as all of vLLM's lines are objects then.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

# The engine configures loggers below its own name only.
logger = logging.getLogger("vllm.shadow_server.request")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """How a request ended.

    Attributes:
        request_id: of the answer's `x-request-id`, the client's own if it was a sound one.
        engine_request_id: what the engine's ids of this request contain.
        path: of the route.
        tenant: who asked.
        adapter: its name; None for the base model, and for a request that ended before that was known.
        adapter_version, adapter_digest: what the name stood for.
        outcome: as `shadow_requests_total` counts it.
        status: of the answer, 499 when the client left before it began.
        seconds: from the arrival of the request to the last byte of the answer.
    """

    request_id: str | None
    engine_request_id: str
    path: str
    tenant: str
    adapter: str | None
    adapter_version: int | None
    adapter_digest: str | None
    outcome: str
    status: int
    seconds: float


def write_record(record: RequestRecord) -> None:
    """Log a request at INFO."""
    if not logger.isEnabledFor(logging.INFO):
        return
    logger.info(
        "Request %s of %s: %s by %s, %d after %.3f s",
        record.request_id,
        record.tenant,
        record.outcome,
        record.adapter or "the base model",
        record.status,
        record.seconds,
        extra=asdict(record),
    )
