"""Series of what the registry holds and does.

Runs in: API process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shadow_server.engine import AdapterRegistry, AdapterState, EvictReason, Level, LoadSource
from shadow_server.observability.histogram import Histogram
from shadow_server.observability.series import (
    ADAPTERS,
    EVICTIONS,
    LEASES,
    LOADS,
    PINNED,
    VLLM_LOADS,
    WAITS,
)

LEVELS: tuple[Level, ...] = ("gpu", "host", "disk")


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
        places = ADAPTERS.gauge()
        for state in AdapterState:
            for level in LEVELS:
                places.add_metric([state.value.lower(), level], by_place[state, level])
        yield places
        draining = AdapterState.DRAINING
        names = {entry.name for entry in entries if entry.state is not draining}
        yield PINNED.value(sum(self._adapters.is_pinned(name) for name in names))
        yield LEASES.value(sum(entry.num_leases for entry in entries))


class AdapterEvents(Collector):
    """Takes the registry's events (`RegistryEvents`) and shows them to Prometheus.

    Ownership: the event loop's thread writes; a scrape on another thread reads counters that may be
    one observation apart. Labels are bounded: sources, reasons and error codes are closed sets.
    """

    def __init__(self) -> None:
        self._loads: dict[tuple[str, str], Histogram] = {}
        self._waits = Histogram(LOADS.bounds)
        self._evictions: Counter[str] = Counter()

    def on_load(self, seconds: float, source: LoadSource, result: str) -> None:
        """See `RegistryEvents`."""
        histogram = self._loads.setdefault((source, result), Histogram(LOADS.bounds))
        histogram.observe(seconds)

    def on_evict(self, reason: EvictReason) -> None:
        """See `RegistryEvents`."""
        self._evictions[reason] += 1

    def on_wait(self, seconds: float) -> None:
        """See `RegistryEvents`."""
        self._waits.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Return the series."""
        loads, good = LOADS.histogram(), Histogram(LOADS.bounds)
        for labels, histogram in list(self._loads.items()):
            loads.add_metric(list(labels), histogram.buckets(), histogram.total_seconds)
            if labels[1] == "ok":
                good.add(histogram)
        yield loads
        vllm_loads = VLLM_LOADS.histogram()
        vllm_loads.add_metric([], good.buckets(), good.total_seconds)
        yield vllm_loads
        waits = WAITS.histogram()
        waits.add_metric([], self._waits.buckets(), self._waits.total_seconds)
        yield waits
        evictions = EVICTIONS.counter()
        for reason, count in list(self._evictions.items()):
            evictions.add_metric([reason], count)
        yield evictions
