"""When a request is sent again, and after how long.

what happened                                   READ    REPEATABLE    ONCE
not connected: nothing was sent                 yes     yes           yes
429, or a 503 that was refused at the door      yes     yes           yes
another answer that says `x-should-retry`       yes     yes           no
502 or 504 of a proxy                           yes     no            no
the connection broke, or a timeout              yes     no            no
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from shadow_client.error import ApiError, ConnectionFailedError, ShadowClientError

REFUSED_AT_THE_DOOR = frozenset({"not_ready", "rate_limit_exceeded", "server_overloaded"})
"""Codes of requests that the server had not begun to act on."""

_PROXY_STATUSES = (502, 504)


class Safety(Enum):
    """What sending a request twice may do.

    READ changes nothing and costs little. REPEATABLE ends in the same state, but is not sent again while the first
    may still be running: a generation, or a publish. ONCE has an effect each time: a rollback.
    """

    READ = "read"
    REPEATABLE = "repeatable"
    ONCE = "once"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long between.

    Attributes:
        max_retries: times that a request is sent again, 0 for never.
        first_wait_seconds: before the first of them, doubled each time; half of it is random.
        longest_wait_seconds: cap of that. A server that asks for a longer wait (`Retry-After`) gets no retry: the
            error is raised at once, since an earlier retry would only be refused.
        random: gives numbers in [0, 1).
    """

    max_retries: int = 2
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    random: Callable[[], float] = random.random

    def find_wait(self, num_sent: int, safety: Safety, error: ShadowClientError) -> float | None:
        """Return how long to wait before the request is sent again, None to give up.

        Args:
            num_sent: times that it was sent, at least 1.
            safety: of the request.
            error: what it came to.
        """
        if num_sent > self.max_retries or not is_worth_it(safety, error):
            return None
        asked = error.info.retry_after_seconds if isinstance(error, ApiError) else None
        if asked is None:
            grown = self.first_wait_seconds * 2.0 ** (num_sent - 1)
            return min(grown, self.longest_wait_seconds) * (0.5 + 0.5 * self.random())
        if asked > self.longest_wait_seconds:
            return None
        # Never earlier than asked; spread, or all who were refused come back in one moment.
        return asked + min(1.0, 0.25 * asked + 0.05) * self.random()


def is_worth_it(safety: Safety, error: ShadowClientError) -> bool:
    """Return whether the same request may succeed later and does no harm then; see the table above."""
    if isinstance(error, ConnectionFailedError):
        return not error.was_sent or safety is Safety.READ
    if not isinstance(error, ApiError):
        return False
    if error.status in _PROXY_STATUSES and error.code is None:
        return safety is Safety.READ
    return error.should_retry and (safety is not Safety.ONCE or error.code in REFUSED_AT_THE_DOOR)
