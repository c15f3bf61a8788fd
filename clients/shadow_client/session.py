"""Sending calls: one httpx client, retries, and answers made into results or errors; synchronous and asynchronous."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx

from shadow_client.adapter import Adapter, Progress
from shadow_client.answer import (
    error_of,
    info_of,
    parse_event,
    request_error,
    result_of,
    shown_url,
)
from shadow_client.call import Call
from shadow_client.error import BadAnswerError, ShadowClientError
from shadow_client.event import Event
from shadow_client.retry import RetryPolicy, Safety
from shadow_client.stream import read_events, read_events_async
from shadow_client.upload import OnProgress

ResultT = TypeVar("ResultT")

DEFAULT_URL = "http://localhost:8000"
CONNECT_SECONDS = 5.0

_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What both kinds of client are made of.

    Attributes:
        url: the server's address.
        key: sent as a bearer token; in no message, log line or `repr`.
        timeout_seconds: between two signs of life of the server: a generation that is not streamed, and a publish, give
            none before they are done.
        retry: see `RetryPolicy`.
    """

    url: str
    key: str | None = field(repr=False)
    timeout_seconds: float
    retry: RetryPolicy

    def __post_init__(self) -> None:
        """Check what a request would fail at, with the key in the failure's message.

        Raises:
            ValueError: the address is none, or the key cannot stand in a header.
        """
        check_url(self.url)
        if self.key is not None and not _KEY.fullmatch(self.key):
            raise ValueError("the key is none: a key has no spaces and no letters beyond ASCII")

    def options(self) -> dict[str, Any]:
        """Return the options of an httpx client."""
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        timeout = httpx.Timeout(self.timeout_seconds, connect=CONNECT_SECONDS)
        return {"base_url": self.url, "headers": headers, "timeout": timeout}


def check_url(url: str) -> None:
    """Raise ValueError for what is no address of a server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no address: it begins with http:// or https:// and a host")


def _request(client: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    options: dict[str, Any] = {}
    if call.timeout_seconds is not None:
        options["timeout"] = httpx.Timeout(call.timeout_seconds, connect=CONNECT_SECONDS)
    if call.upload is not None:
        is_sync = isinstance(client, httpx.Client)
        content = iter(call.upload) if is_sync else aiter(call.upload)
        options |= {"content": content, "headers": call.upload.headers}
    elif call.json is not None:
        options["json"] = call.json
    return client.build_request(call.method, call.path, **options)


def _text_call(path: str, is_sent_once: bool) -> Call[None]:
    return Call("GET", path, lambda data, info: None, Safety.READ, is_sent_once=is_sent_once)


def _find_wait(
    retry: RetryPolicy, num_sent: int, call: Call[Any], error: ShadowClientError
) -> float | None:
    return None if call.is_sent_once else retry.find_wait(num_sent, call.safety, error)


def _progress(event: Event) -> Progress:
    details = parse_event(event.data)
    return Progress(event.name, details.get("num_bytes"), details.get("total_bytes"))


class SyncSession:
    """Sends calls and blocks.

    Args:
        settings: of the client.
        transport: in place of the network.
        sleep: waits between retries.
    """

    def __init__(
        self,
        settings: SessionSettings,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = shown_url(settings.url)
        self._retry = settings.retry
        self._sleep = sleep
        self._http = httpx.Client(transport=transport, **settings.options())

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def run(self, call: Call[ResultT]) -> ResultT:
        """Return the result of a call.

        Raises:
            ShadowClientError: see `shadow_client.error`.
        """
        response = self.open(call)
        with closing(response):
            self._read(response)
        return result_of(call, response)

    def open(self, call: Call[Any]) -> httpx.Response:
        """Return the open answer of a call that succeeded; the caller closes it."""
        for num_sent in itertools.count(1):
            try:
                return self._send(call)
            except ShadowClientError as error:
                wait_seconds = _find_wait(self._retry, num_sent, call, error)
                if wait_seconds is None:
                    raise
                self._sleep(wait_seconds)
        raise AssertionError("the loop above does not end")

    def follow(self, call: Call[Adapter], on_progress: OnProgress) -> Adapter:
        """Return what a publish with events ends in, telling each of them."""
        response = self.open(call)
        with closing(read_events(response)) as events:
            for event in events:
                if event.name == "published":
                    return call.read(parse_event(event.data), info_of(response))
                on_progress(_progress(event))
        raise BadAnswerError("the publish ended without its result")

    def text(self, path: str, *, is_sent_once: bool = False) -> str:
        """Return the text of a GET; for what is not JSON."""
        response = self.open(_text_call(path, is_sent_once))
        with closing(response):
            self._read(response)
        return response.text

    def _send(self, call: Call[Any]) -> httpx.Response:
        try:
            response = self._http.send(_request(self._http, call), stream=True)
        except httpx.RequestError as error:
            raise request_error(error, self.url) from error
        if response.is_success:
            return response
        with closing(response):
            self._read(response)
        raise error_of(response)

    def _read(self, response: httpx.Response) -> None:
        try:
            response.read()
        except httpx.RequestError as error:
            raise request_error(error, self.url) from error


class AsyncSession:
    """Sends calls on an event loop; see `SyncSession`."""

    def __init__(
        self,
        settings: SessionSettings,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.url = shown_url(settings.url)
        self._retry = settings.retry
        self._sleep = sleep
        self._http = httpx.AsyncClient(transport=transport, **settings.options())

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def run(self, call: Call[ResultT]) -> ResultT:
        """See `SyncSession.run`."""
        response = await self.open(call)
        await self._read(response)
        return result_of(call, response)

    async def open(self, call: Call[Any]) -> httpx.Response:
        """See `SyncSession.open`."""
        for num_sent in itertools.count(1):
            try:
                return await self._send(call)
            except ShadowClientError as error:
                wait_seconds = _find_wait(self._retry, num_sent, call, error)
                if wait_seconds is None:
                    raise
                await self._sleep(wait_seconds)
        raise AssertionError("the loop above does not end")

    async def follow(self, call: Call[Adapter], on_progress: OnProgress) -> Adapter:
        """See `SyncSession.follow`."""
        response = await self.open(call)
        async with aclosing(read_events_async(response)) as events:
            async for event in events:
                if event.name == "published":
                    return call.read(parse_event(event.data), info_of(response))
                on_progress(_progress(event))
        raise BadAnswerError("the publish ended without its result")

    async def text(self, path: str, *, is_sent_once: bool = False) -> str:
        """See `SyncSession.text`."""
        response = await self.open(_text_call(path, is_sent_once))
        await self._read(response)
        return response.text

    async def _send(self, call: Call[Any]) -> httpx.Response:
        try:
            response = await self._http.send(_request(self._http, call), stream=True)
        except httpx.RequestError as error:
            raise request_error(error, self.url) from error
        if response.is_success:
            return response
        await self._read(response)
        raise error_of(response)

    async def _read(self, response: httpx.Response) -> None:
        async with aclosing(response):
            try:
                await response.aread()
            except httpx.RequestError as error:
                raise request_error(error, self.url) from error
