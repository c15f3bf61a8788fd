"""Latency histograms by adapter, with a bounded number of adapters.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from shadow_server.observability.histogram import Histogram

BASE_LABEL = "__base__"
OTHER_LABEL = "__other__"

# vLLM's own bounds, so that dashboards line up; inter-token latencies get finer ones below 10 ms,
# where a small model decodes.
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BOUNDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

SERIES = (
    (
        "shadow_time_to_first_token_seconds",
        "Arrival of a prompt to its first token, as the engine measures it.",
        FIRST_TOKEN_BOUNDS,
    ),
    (
        "shadow_inter_token_latency_seconds",
        "Time between two outputs of a running sequence, one observation per engine step.",
        INTER_TOKEN_BOUNDS,
    ),
    (
        "shadow_e2e_request_seconds",
        "Arrival of a prompt to the end of its answer, as the engine measures it.",
        E2E_BOUNDS,
    ),
)
_FIRST_TOKEN, _INTER_TOKEN, _E2E = range(len(SERIES))

# A newcomer takes a label only from an adapter with less than half of its recent requests, so two
# equally busy adapters do not take turns.
_TAKEOVER_RATIO = 2
_HALVING_REQUESTS = 4096


def _new_histograms() -> tuple[Histogram, ...]:
    return tuple(Histogram(bounds) for _, _, bounds in SERIES)


class AdapterLatency(Collector):
    """Takes the engine's latencies and shows them to Prometheus, labelled by adapter.

    Invariants:
        At most `max_labels` adapters have series of their own, the busiest by recent requests;
        `__base__` is the bare base model, `__other__` all the rest.
        No series ever decreases: an adapter that loses its label is added to `__other__`, and one
        that gains a label starts from zero.

    Ownership: the event loop's thread writes; a scrape on another thread reads counters that may be
    one observation apart.
    """

    def __init__(self, max_labels: int) -> None:
        self._max_labels = max_labels
        self._series = {BASE_LABEL: _new_histograms(), OTHER_LABEL: _new_histograms()}
        self._recent: dict[str, int] = {}
        self._num_requests = 0

    def observe_first_token(self, adapter: str | None, seconds: float) -> None:
        """See `LatencySink`; also counts the request towards the adapter's label."""
        if adapter is not None:
            self._count_request(adapter)
        self._of(adapter)[_FIRST_TOKEN].observe(seconds)

    def observe_inter_token(self, adapter: str | None, seconds: float) -> None:
        """See `LatencySink`."""
        self._of(adapter)[_INTER_TOKEN].observe(seconds)

    def observe_finished(self, adapter: str | None, seconds: float) -> None:
        """See `LatencySink`."""
        self._of(adapter)[_E2E].observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Return one histogram family per latency."""
        for index, (name, documentation, _) in enumerate(SERIES):
            family = HistogramMetricFamily(name, documentation, labels=["adapter"])
            for label, histograms in list(self._series.items()):
                histogram = histograms[index]
                family.add_metric([label], histogram.buckets(), histogram.total_seconds)
            yield family

    def _of(self, adapter: str | None) -> tuple[Histogram, ...]:
        if adapter is None:
            return self._series[BASE_LABEL]
        return self._series.get(adapter) or self._series[OTHER_LABEL]

    def _count_request(self, adapter: str) -> None:
        self._num_requests += 1
        if self._num_requests % _HALVING_REQUESTS == 0:
            halved = ((name, count // 2) for name, count in self._recent.items())
            self._recent = {n: c for n, c in halved if c or n in self._series}
        self._recent[adapter] = self._recent.get(adapter, 0) + 1
        if adapter not in self._series:
            self._try_label(adapter)

    def _try_label(self, adapter: str) -> None:
        if len(self._series) - 2 >= self._max_labels:
            labelled = (name for name in self._series if name not in (BASE_LABEL, OTHER_LABEL))
            quietest = min(labelled, key=lambda name: self._recent.get(name, 0), default=None)
            if quietest is None:
                return
            if self._recent[adapter] <= _TAKEOVER_RATIO * self._recent.get(quietest, 0):
                return
            for kept, gone in zip(
                self._series[OTHER_LABEL], self._series.pop(quietest), strict=True
            ):
                kept.add(gone)
        self._series[adapter] = _new_histograms()
