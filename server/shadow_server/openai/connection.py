"""Waiting for an adapter only as long as the client waits too.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

from shadow_server.engine import Lease


async def lease_while_connected(
    lease: Coroutine[Any, Any, Lease], receive: Receive
) -> Lease | None:
    """Return what `lease` gets, None when the client left first; nothing stays leased then.

    Args:
        lease: a lease that may take long to get.
        receive: of a request whose body has been read, so that the next message tells of the client's leaving.

    Raises:
        ShadowError: what `lease` raises.
    """
    waiting = asyncio.create_task(lease)
    leaving = asyncio.create_task(_wait_until_left(receive))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        _abandon(waiting)
        raise
    finally:
        # Not awaited: a server's receive loses no message when it is cancelled, and nothing here may be
        # interrupted between getting the lease and returning it.
        leaving.cancel()
    if waiting.done():
        return waiting.result()
    _abandon(waiting)
    if not leaving.cancelled() and (error := leaving.exception()) is not None:
        raise error
    return None


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _abandon(waiting: asyncio.Task[Lease]) -> None:
    # Cancelling may come too late: then there is a lease, and nobody else to give it back.
    waiting.add_done_callback(_give_back)
    waiting.cancel()


def _give_back(waiting: asyncio.Task[Lease]) -> None:
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()
