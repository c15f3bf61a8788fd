"""Bounds and orders work that runs at the same time.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class LoadGate:
    """At most `max_loads` at once; one that hangs gives its place up after `stall_seconds`, so others go on."""

    def __init__(self, max_loads: int, stall_seconds: float) -> None:
        self._places = asyncio.Semaphore(max_loads)
        self._stall_seconds = stall_seconds

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for a place and hold it for the block, first come, first served."""
        await self._places.acquire()
        is_given_up = False

        def give_up() -> None:
            nonlocal is_given_up
            if not is_given_up:
                is_given_up = True
                self._places.release()

        timer = asyncio.get_running_loop().call_later(self._stall_seconds, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()


class KeyedLock:
    """One lock for each key that somebody uses now."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._users: dict[Hashable, int] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for the key's turn and hold it for the block, first come, first served."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
