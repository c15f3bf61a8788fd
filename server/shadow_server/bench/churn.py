"""A publish every second: two folders of the server's in turn, under a name that is gone afterwards.

Runs in: the command's own process.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shadow_client import AsyncClient, ShadowClientError

NAME = "bench-churn"
PERIOD_SECONDS = 1.0


@dataclass(slots=True)
class Churn:
    """How many publishes were acknowledged, and the first refusal."""

    num_publishes: int = 0
    error: str | None = None


@asynccontextmanager
async def churning(client: AsyncClient, folders: Sequence[str]) -> AsyncIterator[Churn]:
    """Publish the folders in turn for as long as the block runs; nothing without folders."""
    churn = Churn()
    if not folders:
        yield churn
        return
    task = asyncio.create_task(_publish_in_turn(client, folders, churn))
    try:
        yield churn
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _forget(client)


async def _publish_in_turn(client: AsyncClient, folders: Sequence[str], churn: Churn) -> None:
    for folder in itertools.cycle(folders):
        try:
            await client.adapters.publish(NAME, folder)
            churn.num_publishes += 1
        except ShadowClientError as error:
            churn.error = churn.error or str(error)
        await asyncio.sleep(PERIOD_SECONDS)


async def _forget(client: AsyncClient) -> None:
    try:
        await client.adapters.delete(NAME)
    except ShadowClientError:
        # It was never published, or the server is gone; the figures are there all the same.
        return
