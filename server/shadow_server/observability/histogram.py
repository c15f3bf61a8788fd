"""A histogram that one thread writes and a scrape reads.

Runs in: API process.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from itertools import accumulate


class Histogram:
    """Counts of seconds by upper bound."""

    __slots__ = ("bounds", "counts", "total_seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        # Prometheus buckets are inclusive above: a value equal to a bound belongs to it.
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_seconds += seconds

    def add(self, other: Histogram) -> None:
        """Add the counts of a histogram with the same bounds."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total_seconds += other.total_seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts by bound, as Prometheus has them."""
        return list(zip(_names(self.bounds), accumulate(self.counts), strict=True))


@cache
def _names(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*(str(bound) for bound in bounds), "+Inf")
