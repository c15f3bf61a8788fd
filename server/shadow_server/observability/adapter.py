"""Gauges of what the registry holds, read when Prometheus asks.

Runs in: API process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shadow_server.engine import AdapterRegistry, AdapterState


class AdapterGauges(Collector):
    """Adapters by state, and running requests that hold one."""

    def __init__(self, adapters: AdapterRegistry) -> None:
        self._adapters = adapters

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        entries = self._adapters.entries()
        by_state = Counter(entry.state for entry in entries)
        states = GaugeMetricFamily(
            "shadow_adapters", "Adapters of this server by state.", labels=["state"]
        )
        for state in AdapterState:
            states.add_metric([state.value.lower()], by_state[state])
        yield states
        running = GaugeMetricFamily(
            "shadow_adapter_running_requests", "Running requests that use an adapter."
        )
        running.add_metric([], sum(entry.num_leases for entry in entries))
        yield running
