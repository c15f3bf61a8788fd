"""One request for generation from its arrival to its end: counted once, logged once.

Runs in: API process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.types import Scope

from shadow_server.engine import AdapterEntry, RequestOrigin
from shadow_server.middleware.request_id import internal_id_of, shown_id_of
from shadow_server.observability.record import RequestRecord, write_record
from shadow_server.observability.rejection import RequestRejections
from shadow_server.observability.request import RequestMetrics
from shadow_server.openai.outcome import AnswerWatch

UNRESOLVED = ""
"""Stands for the adapter of a request that ended before it was known; it counts among those without a label."""


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
        entry = self._entry
        write_record(
            RequestRecord(
                request_id=shown_id_of(self._scope),
                engine_request_id=internal_id_of(self._scope),
                path=self._scope["path"],
                tenant=self._origin.tenant,
                adapter=self._origin.adapter or None,
                adapter_version=None if entry is None else entry.version,
                adapter_digest=None if entry is None else entry.digest,
                outcome=outcome,
                status=watch.status(error),
                seconds=round(time.monotonic() - self._arrived_at, 6),
            )
        )
