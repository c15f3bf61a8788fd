"""What requests experience, by adapter and tenant, with a bounded number of both.

Runs in: API process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shadow_server.engine import RequestOrigin, SequenceState
from shadow_server.observability.histogram import Histogram
from shadow_server.observability.label import BusiestRows
from shadow_server.observability.series import (
    BASE_LABEL,
    E2E,
    FIRST_TOKEN,
    INTER_TOKEN,
    OTHER_LABEL,
    QUEUE,
    REQUESTS,
    RUNNING,
    TOKENS,
    WAITING_AGE,
)

Outcome = Literal["ok", "invalid", "rejected", "error", "aborted"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MAX_TENANT_LABELS = 100

_HISTOGRAMS = (FIRST_TOKEN, INTER_TOKEN, QUEUE, E2E)


class OriginRow:
    """All that is counted under one pair of labels."""

    __slots__ = (
        "e2e",
        "first_token",
        "inter_token",
        "num_generated",
        "num_prompt",
        "outcomes",
        "queue",
    )

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN.bounds)
        self.inter_token = Histogram(INTER_TOKEN.bounds)
        self.queue = Histogram(QUEUE.bounds)
        self.e2e = Histogram(E2E.bounds)
        self.num_prompt = self.num_generated = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)

    def histograms(self) -> tuple[Histogram, ...]:
        """Return them in the order of `_HISTOGRAMS`."""
        return (self.first_token, self.inter_token, self.queue, self.e2e)


Rows = list[tuple[tuple[str, str], OriginRow]]


class OriginRows:
    """Finds the row of an origin; see `BusiestRows` for how origins come by one.

    At most `max_adapters` pairs of adapter and tenant have rows of their own. What is left, and the base model, is
    counted by tenant, at most `MAX_TENANT_LABELS` of them, and what is left then under `__other__` alone: there are at
    most max_adapters + 2 * MAX_TENANT_LABELS + 2 rows.
    """

    def __init__(self, max_adapters: int, clock: Callable[[], float] | None = None) -> None:
        options = {} if clock is None else {"clock": clock}
        self._pairs = BusiestRows[RequestOrigin, OriginRow](max_adapters, OriginRow, **options)
        self._bases = BusiestRows[str, OriginRow](MAX_TENANT_LABELS, OriginRow, **options)
        self._others = BusiestRows[str, OriginRow](MAX_TENANT_LABELS, OriginRow, **options)
        self._base_rest, self._other_rest = OriginRow(), OriginRow()

    def find(self, origin: RequestOrigin) -> OriginRow:
        """Return where an origin counts now."""
        row = self._pairs.find(origin)
        if row is not None:
            return row
        adapter, tenant = origin
        if adapter is None:
            return self._bases.find(tenant) or self._base_rest
        return self._others.find(tenant) or self._other_rest

    def count(self, origin: RequestOrigin) -> None:
        """Note a request of an origin."""
        if origin.adapter is None:
            self._bases.count(origin.tenant)
            return
        self._pairs.count(origin)
        if self._pairs.find(origin) is None:
            self._others.count(origin.tenant)

    def rebalance(self) -> None:
        """See `BusiestRows.rebalance`."""
        for rows in (self._pairs, self._bases, self._others):
            rows.rebalance()

    def settle(self) -> None:
        """See `BusiestRows.settle`."""
        for rows in (self._pairs, self._bases, self._others):
            rows.settle()

    def shown(self) -> Rows:
        """Return every row with its labels."""
        return [
            *(((str(origin.adapter), origin.tenant), row) for origin, row in self._pairs.shown()),
            *(((BASE_LABEL, tenant), row) for tenant, row in self._bases.shown()),
            *(((OTHER_LABEL, tenant), row) for tenant, row in self._others.shown()),
            ((BASE_LABEL, OTHER_LABEL), self._base_rest),
            ((OTHER_LABEL, OTHER_LABEL), self._other_rest),
        ]

    def labels(self, origin: RequestOrigin) -> tuple[str, str]:
        """Return the labels under which an origin counts now."""
        adapter, tenant = origin
        if adapter is None:
            return BASE_LABEL, tenant if self._bases.find(tenant) else OTHER_LABEL
        if self._pairs.find(origin) is not None:
            return adapter, tenant
        return OTHER_LABEL, tenant if self._others.find(tenant) else OTHER_LABEL


class RequestMetrics(Collector):
    """Takes the engine's observations (`RequestSink`) and the routes' outcomes, and shows them to Prometheus.

    Ownership: the event loop's thread writes; a scrape on another thread reads counters that may be one observation
    apart.
    """

    def __init__(
        self,
        max_adapters: int,
        sequences: Callable[[], list[SequenceState]] = list,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Start at zero.

        Args:
            max_adapters: pairs of adapter and tenant with labels of their own.
            sequences: what the engine works on now; called at scrapes.
            clock: seconds, never backwards; the monotonic one without it.
        """
        self._rows = OriginRows(max_adapters, clock)
        self._sequences = sequences
        self._scrape = threading.Lock()
        self._find = self._rows.find

    def observe_first_token(
        self, origin: RequestOrigin, seconds: float, queue_seconds: float
    ) -> None:
        """See `RequestSink`."""
        row = self._find(origin)
        row.first_token.observe(seconds)
        row.queue.observe(queue_seconds)

    def observe_inter_token(self, origin: RequestOrigin, seconds: float) -> None:
        """See `RequestSink`."""
        self._find(origin).inter_token.observe(seconds)

    def observe_tokens(
        self, origin: RequestOrigin, num_prompt_tokens: int, num_generated_tokens: int
    ) -> None:
        """See `RequestSink`."""
        row = self._find(origin)
        row.num_prompt += num_prompt_tokens
        row.num_generated += num_generated_tokens

    def observe_finished(self, origin: RequestOrigin, seconds: float) -> None:
        """See `RequestSink`."""
        self._find(origin).e2e.observe(seconds)

    def begin(self, origin: RequestOrigin) -> None:
        """Note that a request of `origin` goes to the engine: the busiest origins have labels of their own."""
        self._rows.count(origin)

    def end(self, origin: RequestOrigin, outcome: Outcome) -> None:
        """Count one HTTP request for generation."""
        self._find(origin).outcomes[outcome] += 1

    def collect(self) -> Iterable[Metric]:
        """Return all series; labels change hands now and only now."""
        with self._scrape:
            self._rows.rebalance()
            rows = self._rows.shown()
            families = [*_histograms(rows), _requests(rows), _tokens(rows), *self._running(rows)]
            self._rows.settle()
        return families

    def _running(self, rows: Rows) -> Iterable[Metric]:
        counts: Counter[tuple[tuple[str, str], bool]] = Counter()
        ages: dict[tuple[str, str], float] = {}
        for sequence in self._sequences():
            labels = self._rows.labels(sequence.origin)
            counts[labels, sequence.is_waiting] += 1
            if sequence.is_waiting:
                ages[labels] = max(ages.get(labels, 0.0), sequence.age_seconds)
        running, oldest = RUNNING.gauge(), WAITING_AGE.gauge()
        for labels, _ in rows:
            running.add_metric([*labels, "waiting"], counts[labels, True])
            running.add_metric([*labels, "running"], counts[labels, False])
            oldest.add_metric(labels, ages.get(labels, 0.0))
        return running, oldest


def _histograms(rows: Rows) -> Iterable[Metric]:
    for index, series in enumerate(_HISTOGRAMS):
        family = series.histogram()
        for labels, row in rows:
            histogram = row.histograms()[index]
            family.add_metric(labels, histogram.buckets(), histogram.total_seconds)
        yield family


def _requests(rows: Rows) -> Metric:
    family = REQUESTS.counter()
    for labels, row in rows:
        for outcome in OUTCOMES:
            family.add_metric([*labels, outcome], row.outcomes[outcome])
    return family


def _tokens(rows: Rows) -> Metric:
    family = TOKENS.counter()
    for labels, row in rows:
        family.add_metric([*labels, "prompt"], row.num_prompt)
        family.add_metric([*labels, "generated"], row.num_generated)
    return family
