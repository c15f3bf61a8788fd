"""A publish's progress as server-sent events.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

_MAX_WAITING_EVENTS = 64
DONE = b"data: [DONE]\n\n"


class ProgressFeed:
    """What a publish has reached, from any thread to one reader on the event loop.

    Bounded: a `reading` event that nobody has read is replaced by the next one, and beyond 64 events
    the oldest is dropped. A feed without a reader costs nothing and stops nothing.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._events: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=_MAX_WAITING_EVENTS)
        self._has_news = asyncio.Event()
        self._is_waking = False

    def tell(self, stage: str, details: Mapping[str, Any]) -> None:
        """Take one event; a `Progress`, called on any thread."""
        with self._lock:
            if stage == "reading" and self._events and self._events[-1][0] == stage:
                self._events.pop()
            self._events.append((stage, details))
            is_waking, self._is_waking = self._is_waking, True
        if not is_waking:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._has_news.set)

    async def follow(
        self, work: asyncio.Future[Any]
    ) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
        """Yield the events until `work` is done; its result or exception is the caller's to take."""
        work.add_done_callback(lambda _: self._has_news.set())
        while True:
            is_over = work.done()
            for event in self._take():
                yield event
            if is_over:
                return
            await self._has_news.wait()

    def _take(self) -> list[tuple[str, Mapping[str, Any]]]:
        with self._lock:
            self._has_news.clear()
            self._is_waking = False
            events = list(self._events)
            self._events.clear()
        return events


async def progress_stream(
    feed: ProgressFeed,
    work: asyncio.Future[dict[str, Any]],
    describe_error: Callable[[Exception], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """Yield the server-sent events of `work`: its progress, then `published` or `error`, then [DONE].

    Args:
        feed: gets the progress of `work`.
        work: gives the body that the request would have been answered with. It is never cancelled.
        describe_error: gives the body of its error.
    """
    async for stage, details in feed.follow(work):
        yield event(stage, details)
    try:
        yield event("published", work.result())
    except Exception as error:  # told to the client in the table's words
        yield event("error", describe_error(error))
    yield DONE


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
