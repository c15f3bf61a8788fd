"""Requests that were refused before the engine saw them.

Runs in: API process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shadow_server.observability.series import REJECTED

NO_TENANT = "__none__"
"""Label of a request whose key stands for nobody."""


class RequestRejections(Collector):
    """Counts refusals by error code and tenant.

    Bounded: reasons are codes of the error table, tenants come from the tenants file, never from a
    request. The event loop's thread writes; a scrape may be one refusal behind.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, reason: str, tenant: str | None) -> None:
        """Count one refusal: `reason` is the answer's error code, `tenant` None without a valid key."""
        self._counts[reason, NO_TENANT if tenant is None else tenant] += 1

    def collect(self) -> Iterable[Metric]:
        """Return the counter."""
        family = REJECTED.counter()
        for labels, count in list(self._counts.items()):
            family.add_metric(list(labels), count)
        yield family
