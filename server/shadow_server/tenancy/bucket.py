"""Token bucket: a rate with a burst of one minute.

Runs in: API process. Pure; the clock is an argument.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_SECONDS = 60.0


class TokenBucket:
    """Fills by `limit` a minute up to `limit`; starts full.

    Invariants: the level is never seen over the limit. Over any t seconds `try_take` grants at most
    limit + limit * t / 60, less what `charge` took and plus what it gave back meanwhile.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start full.

        Args:
            limit: tokens a minute, and the most that the bucket holds. 1 or more.
            clock: seconds, never backwards.
        """
        self._clock = clock
        self._limit = limit
        self._level = float(limit)
        self._filled_at = clock()

    @property
    def limit(self) -> int:
        """Tokens a minute."""
        return self._limit

    @property
    def remaining(self) -> int:
        """Whole tokens that could be taken now."""
        self._fill()
        return max(0, math.floor(self._level))

    def peek_used(self) -> float:
        """Return how many tokens are taken now, over the limit where more was charged; changes nothing.

        May be called on any thread, and is then one change off at most.
        """
        gained = max(0.0, self._clock() - self._filled_at) * self._limit / _SECONDS
        return self._limit - min(float(self._limit), self._level + gained)

    def set_limit(self, limit: int) -> None:
        """Change the rate; what was taken stays taken."""
        self._fill()
        taken = self._limit - self._level
        self._limit = limit
        self._level = limit - taken

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
        if amount > self._limit:
            return math.inf
        self._fill()
        return max(0.0, (amount - self._level) * _SECONDS / self._limit)

    def seconds_until_full(self) -> float:
        """Return when the bucket will be full if nothing takes any."""
        return self.seconds_until(self._limit)

    def _fill(self) -> None:
        now = self._clock()
        gained = max(0.0, now - self._filled_at) * self._limit / _SECONDS
        self._level = min(float(self._limit), self._level + gained)
        self._filled_at = now
