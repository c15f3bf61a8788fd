"""Levels that are shown are fresh: slots change hands in every step of the engine.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
import time

from shadow_server.engine import AdapterRegistry

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 1.0
_WAIT_SECONDS = 0.5
# The engine is asked between two steps, so not more often than metrics are usually read.
_SCRAPE_SECONDS = 5.0


class LevelRefresh:
    """Asks the engine at most once a second, whoever asks, and never keeps an answer waiting for long."""

    def __init__(self, adapters: AdapterRegistry) -> None:
        self._adapters = adapters
        self._running: asyncio.Task[None] | None = None
        self._refreshed_at = -_FRESH_SECONDS

    async def refresh(self) -> None:
        """Bring the entries' levels up to date; an engine that is slow to tell leaves them as they are."""
        if self._running is None:
            if time.monotonic() - self._refreshed_at < _FRESH_SECONDS:
                return
            self._running = asyncio.create_task(self._refresh())
        await asyncio.wait({self._running}, timeout=_WAIT_SECONDS)

    async def keep_fresh(self) -> None:
        """Refresh every few seconds, for who reads levels without asking: a scrape. Ends when it is cancelled."""
        while True:
            await asyncio.sleep(_SCRAPE_SECONDS)
            await self.refresh()

    async def _refresh(self) -> None:
        try:
            await self._adapters.refresh_levels()
        except Exception:
            logger.warning("The engine did not tell where adapters are", exc_info=True)
        finally:
            self._refreshed_at = time.monotonic()
            self._running = None
