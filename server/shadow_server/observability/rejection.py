"""Requests that were refused before the engine saw them.

Runs in: API process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shadow_server.observability.label import BusiestRows
from shadow_server.observability.request import MAX_TENANT_LABELS
from shadow_server.observability.series import OTHER_LABEL, REJECTED

NO_TENANT = "__none__"
"""Label of a request whose key stands for nobody."""


class RequestRejections(Collector):
    """Counts refusals by error code and tenant.

    Bounded: reasons are codes of the error table, and tenants have labels as in `BusiestRows`. The event loop's thread
    writes; a scrape may be one refusal behind.
    """

    def __init__(self) -> None:
        self._tenants = BusiestRows[str, Counter[str]](MAX_TENANT_LABELS, Counter)
        self._nobody: Counter[str] = Counter()
        self._rest: Counter[str] = Counter()
        self._scrape = threading.Lock()

    def count(self, reason: str, tenant: str | None) -> None:
        """Count one refusal: `reason` is the answer's error code, `tenant` None without a valid key."""
        if tenant is None:
            self._nobody[reason] += 1
            return
        self._tenants.count(tenant)
        row = self._tenants.find(tenant)
        (self._rest if row is None else row)[reason] += 1

    def collect(self) -> Iterable[Metric]:
        """Return the counter."""
        family = REJECTED.counter()
        with self._scrape:
            self._tenants.rebalance()
            rows = [*self._tenants.shown(), (NO_TENANT, self._nobody), (OTHER_LABEL, self._rest)]
            for tenant, counts in rows:
                for reason, count in list(counts.items()):
                    family.add_metric([reason, tenant], count)
            self._tenants.settle()
        return [family]
