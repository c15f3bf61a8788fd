"""Answers that come piece by piece.

Leaving early closes the connection, and the server stops generating: at the end of a `with` block, on `close()`, and
for the synchronous ones also when the iterator is dropped, as a `break` out of a `for` does.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx

from shadow_client.answer import info_of, parse_event, request_error, stream_error
from shadow_client.error import StreamInterruptedError
from shadow_client.event import DONE, Event, EventReader
from shadow_client.generation import ChatCompletion, Completion, Usage
from shadow_client.info import ResponseInfo

ChunkT = TypeVar("ChunkT", bound=Completion | ChatCompletion)
Read = Callable[[Any, ResponseInfo], ChunkT]


def read_events(response: httpx.Response) -> Generator[Event]:
    """Yield the events of an open answer up to its end mark; closes it in every case.

    Raises:
        ApiError: the server told one inside the stream.
        StreamInterruptedError: it ended without its end mark.
        ConnectionFailedError: the connection broke.
        BadAnswerError: it cannot be decoded.
    """
    reader = EventReader()
    try:
        for piece in response.iter_bytes():
            for event in reader.feed(piece):
                if event.data == DONE:
                    return
                yield _checked(event, response)
    except httpx.RequestError as error:
        raise request_error(error, response.url) from error
    finally:
        response.close()
    raise _interrupted()


async def read_events_async(response: httpx.Response) -> AsyncGenerator[Event]:
    """Yield the same as `read_events`, and raise the same."""
    reader = EventReader()
    try:
        async for piece in response.aiter_bytes():
            for event in reader.feed(piece):
                if event.data == DONE:
                    return
                yield _checked(event, response)
    except httpx.RequestError as error:
        raise request_error(error, response.url) from error
    finally:
        await response.aclose()
    raise _interrupted()


def _checked(event: Event, response: httpx.Response) -> Event:
    error = stream_error(event.data, info_of(response))
    if error is not None:
        raise error
    return event


def _interrupted() -> StreamInterruptedError:
    return StreamInterruptedError("the stream ended before its end: the server stopped, or a proxy")


class Stream(Generic[ChunkT]):
    """Chunks of an answer, once.

    Attributes:
        info: the answer's headers.
        usage: tokens that it took; None until the end.
    """

    def __init__(self, response: httpx.Response, read: Read[ChunkT]) -> None:
        self.info = info_of(response)
        self.usage: Usage | None = None
        self._response = response
        self._read = read
        # A function of the module: a generator of a method would hold this object, and never be dropped with it.
        self._events = read_events(response)
        # A generator that was never begun has no end of its own.
        weakref.finalize(self, response.close)

    def __iter__(self) -> Iterator[ChunkT]:
        """Return itself."""
        return self

    def __next__(self) -> ChunkT:
        """Return the next chunk; raises what `read_events` does."""
        chunk = self._read(parse_event(next(self._events).data), self.info)
        self.usage = chunk.usage or self.usage
        return chunk

    def __enter__(self) -> Stream[ChunkT]:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the server stops generating. Again is fine."""
        self._events.close()
        self._response.close()

    def read_text(self) -> str:
        """Return all that is left of the first choice's text."""
        return "".join(
            chunk.text for chunk in self if not chunk.choices or not chunk.choices[0].index
        )


class AsyncStream(Generic[ChunkT]):
    """The same for `async for`; use it in an `async with` when you may leave early."""

    def __init__(self, response: httpx.Response, read: Read[ChunkT]) -> None:
        self.info = info_of(response)
        self.usage: Usage | None = None
        self._response = response
        self._read = read
        self._events = read_events_async(response)

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        """Return itself."""
        return self

    async def __anext__(self) -> ChunkT:
        """Return the next chunk; raises what `read_events` does."""
        event = await anext(self._events)
        chunk = self._read(parse_event(event.data), self.info)
        self.usage = chunk.usage or self.usage
        return chunk

    async def __aenter__(self) -> AsyncStream[ChunkT]:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the server stops generating. Again is fine."""
        await self._events.aclose()
        await self._response.aclose()

    async def read_text(self) -> str:
        """Return all that is left of the first choice's text."""
        texts = [c.text async for c in self if not c.choices or not c.choices[0].index]
        return "".join(texts)
