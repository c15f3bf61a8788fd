"""Token bucket: a rate with a burst.

Runs in: API process. Pure; the clock is an argument.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_SECONDS = 60.0


class TokenBucket:
    """Fills by `limit` a minute up to `burst`; starts full.

    Invariants: the level is never seen over the burst. Over any t seconds `try_take` grants at most
    burst + limit * t / 60, less what `charge` took and plus what it gave back meanwhile.
    """

    def __init__(
        self, limit: int, clock: Callable[[], float] = time.monotonic, *, burst: int | None = None
    ) -> None:
        """Start full.

        Args:
            limit: tokens a minute. 1 or more.
            clock: seconds, never backwards.
            burst: the most that the bucket holds, 1 or more; a minute's tokens by default, and never more.
        """
        self._clock = clock
        self._limit = limit
        self._burst = _clamp(limit, burst)
        self._level = float(self._burst)
        self._filled_at = clock()

    @property
    def limit(self) -> int:
        """Tokens a minute."""
        return self._limit

    @property
    def burst(self) -> int:
        """The most that the bucket holds."""
        return self._burst

    @property
    def remaining(self) -> int:
        """Whole tokens that could be taken now."""
        self._fill()
        return max(0, math.floor(self._level))

    def peek_used(self) -> float:
        """Return how much of the limit is used now: all of it when nothing can be taken; changes nothing.

        Over the limit where more was charged than there was. Where the burst is less than the limit, the used part of
        the burst counts as that part of the limit. May be called on any thread, and is then one change off at most.
        """
        gained = max(0.0, self._clock() - self._filled_at) * self._limit / _SECONDS
        taken = self._burst - min(float(self._burst), self._level + gained)
        return taken * self._limit / self._burst

    def set_limit(self, limit: int, burst: int | None = None) -> None:
        """Change rate and burst; what was taken stays taken."""
        self._fill()
        taken = self._burst - self._level
        self._limit = limit
        self._burst = _clamp(limit, burst)
        self._level = self._burst - taken

    def try_take(self, amount: int) -> bool:
        """Take `amount` tokens if they are there; returns whether they were."""
        self._fill()
        if self._level < amount:
            return False
        self._level -= amount
        return True

    def charge(self, amount: int) -> None:
        """Take `amount` tokens whether they are there or not; a negative amount gives back."""
        self._fill()
        self._level -= amount

    def seconds_until(self, amount: int) -> float:
        """Return when `amount` tokens will be there if nothing else takes any; inf when they never can."""
        if amount > self._burst:
            return math.inf
        self._fill()
        return max(0.0, (amount - self._level) * _SECONDS / self._limit)

    def seconds_until_full(self) -> float:
        """Return when the bucket will be full if nothing takes any."""
        return self.seconds_until(self._burst)

    def _fill(self) -> None:
        now = self._clock()
        gained = max(0.0, now - self._filled_at) * self._limit / _SECONDS
        self._level = min(float(self._burst), self._level + gained)
        self._filled_at = now


def _clamp(limit: int, burst: int | None) -> int:
    return limit if burst is None else min(limit, burst)
