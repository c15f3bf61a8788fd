"""The asynchronous client behind the synchronous one's face, so that one test says what both do."""

import inspect
from contextlib import contextmanager

from anyio.from_thread import start_blocking_portal

from shadow_client import AsyncClient, AsyncStream


class Blocking:
    """Calls every coroutine function of `inner` on the portal's event loop and waits for it."""

    def __init__(self, inner, portal):
        self._inner, self._portal = inner, portal

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if not callable(value):
            is_plain = value is None or not type(value).__module__.startswith("shadow_client")
            return value if is_plain or name in ("info", "usage") else Blocking(value, self._portal)

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            if inspect.isawaitable(result):
                result = self._portal.call(_wait, result)
            return Blocking(result, self._portal) if isinstance(result, AsyncStream) else result

        return call

    def __iter__(self):
        while True:
            try:
                yield self._portal.call(self._inner.__anext__)
            except StopAsyncIteration:
                return

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


async def _wait(awaitable):
    return await awaitable


@contextmanager
def blocking_client(make):
    """Yield the client that `make()` returns, with every call waited for."""
    with start_blocking_portal() as portal:
        client = portal.call(_call, make)
        assert isinstance(client, AsyncClient)
        yield Blocking(client, portal)
        portal.call(client.close)


async def _call(make):
    return make()
