"""Reading /metrics: samples, and quantiles of what happened between two of them.

Runs in: the command's own process.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\S+)?")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Buckets = dict[float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


def read_samples(text: str) -> list[Sample]:
    """Return the samples of Prometheus' text format; lines that are none are skipped."""
    matches = (_SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
    return [
        Sample(match[1], _labels(match[2] or ""), float(match[3])) for match in matches if match
    ]


def _labels(text: str) -> dict[str, str]:
    return {
        name: re.sub(r"\\.", lambda m: _ESCAPES.get(m[0], m[0]), value)
        for name, value in _LABEL.findall(text)
    }


@dataclass(slots=True)
class Series:
    """The counters of one adapter, summed over its other labels.

    Attributes:
        num_requests: whose first token came.
        first_token, inter_token: cumulative counts by upper bound, seconds.
    """

    num_requests: float = 0.0
    first_token: Buckets = field(default_factory=lambda: defaultdict(float))
    inter_token: Buckets = field(default_factory=lambda: defaultdict(float))

    def since(self, earlier: Series | None) -> Series:
        """Return what was added after `earlier`; a counter that began anew counts from zero."""
        if earlier is None or earlier.num_requests > self.num_requests:
            return self
        return Series(
            self.num_requests - earlier.num_requests,
            {b: n - earlier.first_token.get(b, 0.0) for b, n in self.first_token.items()},
            {b: n - earlier.inter_token.get(b, 0.0) for b, n in self.inter_token.items()},
        )


def by_adapter(samples: Iterable[Sample]) -> dict[str, Series]:
    """Return the series of every value of the label `adapter`, `__base__` and `__other__` among them."""
    found: dict[str, Series] = defaultdict(Series)
    for sample in samples:
        adapter = sample.labels.get("adapter")
        if adapter is None:
            continue
        if sample.name == "shadow_time_to_first_token_seconds_count":
            found[adapter].num_requests += sample.value
        elif sample.name == "shadow_time_to_first_token_seconds_bucket":
            found[adapter].first_token[float(sample.labels["le"])] += sample.value
        elif sample.name == "shadow_inter_token_latency_seconds_bucket":
            found[adapter].inter_token[float(sample.labels["le"])] += sample.value
    return dict(found)


def quantile(buckets: Buckets, ratio: float) -> float | None:
    """Return the quantile as Prometheus' `histogram_quantile` estimates it, seconds; None without observations.

    Args:
        buckets: cumulative counts by upper bound, +Inf among them.
        ratio: 0.5 for the median.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    wanted = ratio * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            inside = buckets[bound] - below
            is_open = bound == float("inf")
            return (
                lower
                if is_open or not inside
                else lower + (bound - lower) * (wanted - below) / inside
            )
        lower, below = bound, buckets[bound]
    return lower
