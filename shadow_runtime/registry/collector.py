"""Removes the bytes that no version names.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from shadow_runtime.errors import CatalogError, StorageError

logger = logging.getLogger(__name__)


class Collector:
    """Asks the store to forget, from time to time.

    Args:
        collect: one collection.
        period_seconds: from the end of one to the next.
    """

    def __init__(self, collect: Callable[[], Awaitable[None]], period_seconds: float) -> None:
        self._collect = collect
        self._period_seconds = period_seconds

    async def run(self) -> None:
        """Collect until cancelled; a database or disk that does not answer is tried again at the next turn."""
        while True:
            await asyncio.sleep(self._period_seconds)
            try:
                await self._collect()
            except (CatalogError, StorageError) as error:
                logger.warning("nothing was removed from the adapter store: %s", error)
            except Exception:
                logger.exception("nothing was removed from the adapter store")
