"""Tasks that nobody awaits.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Keeps tasks alive until they end, and ends them when the registry closes. One event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start `work`; whoever starts it without awaiting it makes it log its own errors."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    async def finish(self, wait_seconds: float) -> None:
        """Wait for the tasks, at most `wait_seconds`, then cancel those that are left."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=wait_seconds)
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # All who waited for it may have gone away; its error is theirs, not an unhandled one.
        if not task.cancelled():
            task.exception()
