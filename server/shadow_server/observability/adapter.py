"""Series of what the registry holds and does.

Runs in: API process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from shadow_server.engine import AdapterRegistry, AdapterState, EvictReason, Level, LoadSource
from shadow_server.observability.histogram import Histogram

LEVELS: tuple[Level, ...] = ("gpu", "host", "disk")

LOAD_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0),
)


class AdapterGauges(Collector):
    """Adapters by state and level, the pinned ones, and running requests that hold one.

    Read when Prometheus asks, on another thread: counts may be one change apart.
    """

    def __init__(self, adapters: AdapterRegistry) -> None:
        self._adapters = adapters

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        entries = self._adapters.entries()
        by_place = Counter((entry.state, entry.level) for entry in entries)
        places = GaugeMetricFamily(
            "shadow_adapters",
            "Adapters of this server by state and by the nearest place that holds their bytes.",
            labels=["state", "level"],
        )
        for state in AdapterState:
            for level in LEVELS:
                places.add_metric([state.value.lower(), level], by_place[state, level])
        yield places
        draining = AdapterState.DRAINING
        names = {entry.name for entry in entries if entry.state is not draining}
        yield GaugeMetricFamily(
            "shadow_adapters_pinned",
            "Adapters that are kept resident.",
            value=sum(self._adapters.is_pinned(name) for name in names),
        )
        yield GaugeMetricFamily(
            "shadow_adapter_running_requests",
            "Running requests that use an adapter.",
            value=sum(entry.num_leases for entry in entries),
        )


class AdapterEvents(Collector):
    """Takes the registry's events (`RegistryEvents`) and shows them to Prometheus.

    Ownership: the event loop's thread writes; a scrape on another thread reads counters that may be
    one observation apart. Labels are bounded: sources, reasons and error codes are closed sets.
    """

    def __init__(self) -> None:
        self._loads: dict[tuple[str, str], Histogram] = {}
        self._waits = Histogram(LOAD_BOUNDS)
        self._evictions: Counter[str] = Counter()

    def on_load(self, seconds: float, source: LoadSource, result: str) -> None:
        """See `RegistryEvents`."""
        histogram = self._loads.setdefault((source, result), Histogram(LOAD_BOUNDS))
        histogram.observe(seconds)

    def on_evict(self, reason: EvictReason) -> None:
        """See `RegistryEvents`."""
        self._evictions[reason] += 1

    def on_wait(self, seconds: float) -> None:
        """See `RegistryEvents`."""
        self._waits.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Return the series."""
        loads = HistogramMetricFamily(
            "shadow_adapter_load_seconds",
            "Time that the engine took to load an adapter, by what asked for it and how it ended.",
            labels=["source", "result"],
        )
        for labels, histogram in list(self._loads.items()):
            loads.add_metric(list(labels), histogram.buckets(), histogram.total_seconds)
        yield loads
        waits = HistogramMetricFamily(
            "shadow_adapter_wait_seconds",
            "Time that a request waited for an adapter that the engine did not hold.",
        )
        waits.add_metric([], self._waits.buckets(), self._waits.total_seconds)
        yield waits
        evictions = CounterMetricFamily(
            "shadow_adapter_evictions",
            "Adapters that lost their host memory or their device slot.",
            labels=["reason"],
        )
        for reason, count in list(self._evictions.items()):
            evictions.add_metric([reason], count)
        yield evictions
