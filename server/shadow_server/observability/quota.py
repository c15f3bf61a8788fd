"""How near tenants are to their quotas.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shadow_server.observability.request import MAX_TENANT_LABELS
from shadow_server.observability.series import QUOTA_LIMIT, QUOTA_USED
from shadow_server.tenancy.limit import QuotaUse


class QuotaGauges(Collector):
    """Shows the tenants that are nearest to a limit of theirs, as many as have labels. Read at scrapes."""

    def __init__(self, uses: Callable[[], Mapping[str, Sequence[QuotaUse]]]) -> None:
        """Show what `uses` returns by tenant; it is called on the scraping thread."""
        self._uses = uses

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        used, limit = QUOTA_USED.gauge(), QUOTA_LIMIT.gauge()
        limited = [(tenant, uses) for tenant, uses in self._uses().items() if uses]
        limited.sort(key=lambda item: (-max(use.used / use.limit for use in item[1]), item[0]))
        for tenant, uses in limited[:MAX_TENANT_LABELS]:
            for use in uses:
                used.add_metric([tenant, use.quota], use.used)
                limit.add_metric([tenant, use.quota], use.limit)
        yield used
        yield limit
