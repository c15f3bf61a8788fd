"""Who leaves host memory first.

Runs in: API process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_MIN_LOAD_SECONDS = 1e-3
"""Loads faster than this count as this fast: their differences are noise."""


@dataclass(slots=True)
class _Use:
    used_at: float
    load_seconds: float
    is_demoted: bool


class WeightedRecency:
    """Least recent use weighted by what a load costs: the digest that has been idle for most of its load times leaves.

    One that takes twice as long to load may be idle for twice as long. Digests that no name answers with leave first.
    (GreedyDual keeps no time: after a long while without evictions it would first let go what loads fastest, however
    recently that was used.)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def touch(self, digest: str, load_seconds: float) -> None:
        """Note a use of a digest whose load takes `load_seconds`."""
        cost = max(load_seconds, _MIN_LOAD_SECONDS)
        self._uses[digest] = _Use(self._clock(), cost, is_demoted=False)

    def demote(self, digest: str) -> None:
        """Let a digest leave before all that were not demoted, until it is used again."""
        self._uses[digest].is_demoted = True

    def choose(self, digests: Iterable[str]) -> str | None:
        """Return which of `digests` leaves first, None without any; changes nothing."""
        now = self._clock()

        def urgency(digest: str) -> tuple[bool, float]:
            use = self._uses[digest]
            return use.is_demoted, (now - use.used_at) / use.load_seconds

        return max(digests, key=urgency, default=None)

    def forget(self, digest: str) -> None:
        """Note that a digest has left."""
        self._uses.pop(digest, None)
