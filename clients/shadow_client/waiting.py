"""Waiting for an adapter that was published without waiting, or by somebody else."""

from __future__ import annotations

import time

from shadow_client.adapter import Adapter
from shadow_client.error import AdapterNotReadyError

FIRST_SECONDS, LONGEST_SECONDS = 0.1, 2.0


class Patience:
    """How long until the next look, and when to give up.

    Args:
        name: of the adapter, for the message.
        limit_seconds: from now on.
    """

    def __init__(self, name: str, limit_seconds: float) -> None:
        self._name = name
        self._limit_seconds = limit_seconds
        self._started_at = time.monotonic()
        self._pause_seconds = FIRST_SECONDS

    def next_pause(self, seen: Adapter) -> float | None:
        """Return how many seconds to wait after `seen`, None when it is resident.

        Raises:
            AdapterNotReadyError: it failed, or the time is up.
        """
        if seen.state == "RESIDENT":
            return None
        if seen.state == "FAILED":
            raise AdapterNotReadyError(f"'{self._name}' cannot be loaded: {seen.failure}")
        left = self._limit_seconds - (time.monotonic() - self._started_at)
        if left <= 0:
            raise AdapterNotReadyError(
                f"'{self._name}' is {seen.state} after {self._limit_seconds:g} s"
            )
        pause = min(self._pause_seconds, left)
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_SECONDS)
        return pause
