"""One request for generation from its arrival to its end: counted once, logged once.

Runs in: API process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Scope

from shadow_server.engine import AdapterEntry, RequestOrigin
from shadow_server.middleware.request_id import internal_id_of, shown_id_of
from shadow_server.observability.record import RequestRecord, write_record
from shadow_server.observability.rejection import RequestRejections
from shadow_server.observability.request import Outcome, RequestMetrics
from shadow_server.openai.outcome import AnswerWatch

SPAN_KEY = "shadow.span"
"""Where the scope of a traced request has its span."""

UNRESOLVED = ""
"""Stands for the adapter of a request that ended before it was known; it counts among those without a label."""


class RequestSpan(Protocol):
    """What a trace is told of a request; see `middleware.trace`."""

    def add_wait(self, seconds: float, adapter: str) -> None:
        """A wait for an adapter ended just now."""
        ...

    def describe(self, record: RequestRecord) -> None:
        """The request has ended."""
        ...


@dataclass(frozen=True, slots=True)
class RequestLog:
    """Where requests are counted.

    Attributes:
        rejections: those that were not admitted.
        requests: all of them.
    """

    rejections: RequestRejections
    requests: RequestMetrics


class RequestAccount:
    """Opened when the request arrives; `close` is called exactly once."""

    def __init__(self, log: RequestLog, scope: Scope, tenant: str) -> None:
        self._log = log
        self._scope = scope
        self._origin = RequestOrigin(UNRESOLVED, tenant)
        self._entry: AdapterEntry | None = None
        self._span: RequestSpan | None = scope.get(SPAN_KEY)
        self._arrived_at = time.monotonic()

    def begin(self, entry: AdapterEntry | None) -> None:
        """Note what the request goes to the engine with: an adapter, None for the bare base model."""
        self._entry = entry
        adapter = None if entry is None else entry.name.display
        self._origin = RequestOrigin(adapter, self._origin.tenant)
        self._log.requests.begin(self._origin)

    def close(self, watch: AnswerWatch, error: BaseException | None) -> None:
        """Count and log how it ended; `error` is what was raised, None for nothing."""
        outcome = watch.outcome(error)
        self._log.requests.end(self._origin, outcome)
        record = self._record(outcome, watch.status(error))
        write_record(record)
        if self._span is not None:
            self._span.describe(record)

    def note_lease(self, asked_at: float, adapter: str) -> None:
        """Note that an adapter that was asked for at `asked_at`, by the monotonic clock, is there or will not come."""
        if self._span is not None:
            self._span.add_wait(time.monotonic() - asked_at, adapter)

    def _record(self, outcome: Outcome, status: int) -> RequestRecord:
        entry = self._entry
        return RequestRecord(
            request_id=shown_id_of(self._scope),
            engine_request_id=internal_id_of(self._scope),
            path=self._scope["path"],
            tenant=self._origin.tenant,
            adapter=self._origin.adapter or None,
            adapter_version=None if entry is None else entry.version,
            adapter_digest=None if entry is None else entry.digest,
            outcome=outcome,
            status=status,
            seconds=round(time.monotonic() - self._arrived_at, 6),
        )
