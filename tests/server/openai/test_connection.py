"""Waiting for a lease, and every way in which the wait can end."""

import asyncio

import pytest

from fake_server import settle
from shadow_server.engine import Lease, runtime_errors
from shadow_server.openai.connection import lease_while_connected


class Connection:
    def __init__(self):
        self.messages = asyncio.Queue()

    async def receive(self):
        return await self.messages.get()

    def leave(self):
        self.messages.put_nowait({"type": "http.disconnect"})


class Loading:
    """A lease that comes when `is_ready` is set; `held` counts what was leased and not given back."""

    def __init__(self):
        self.is_ready = asyncio.Event()
        self.held = 0

    async def lease(self, ignores_cancelling=False):
        try:
            await self.is_ready.wait()
        except asyncio.CancelledError:
            if not ignores_cancelling:
                raise
        self.held += 1
        return Lease(None, self.release)

    def release(self, _):
        self.held -= 1


@pytest.fixture
def connection():
    return Connection()


@pytest.fixture
def loading():
    return Loading()


async def test_a_lease_that_comes_is_returned_and_the_connection_left_alone(connection, loading):
    waiting = asyncio.create_task(lease_while_connected(loading.lease(), connection.receive))
    await settle()
    loading.is_ready.set()
    lease = await waiting
    assert loading.held == 1
    connection.leave()
    assert await connection.receive() == {"type": "http.disconnect"}
    lease.release()


async def test_a_client_that_leaves_gives_everything_back(connection, loading):
    waiting = asyncio.create_task(lease_while_connected(loading.lease(), connection.receive))
    await settle()
    connection.leave()
    assert await waiting is None
    loading.is_ready.set()
    await settle()
    assert loading.held == 0


async def test_a_lease_that_comes_with_the_leaving_is_not_lost(connection, loading):
    lease = loading.lease(ignores_cancelling=True)
    waiting = asyncio.create_task(lease_while_connected(lease, connection.receive))
    await settle()
    connection.leave()
    assert await waiting is None
    await settle()
    assert loading.held == 0


@pytest.mark.parametrize("ignores_cancelling", [False, True])
async def test_a_cancelled_wait_gives_everything_back(connection, loading, ignores_cancelling):
    lease = loading.lease(ignores_cancelling)
    waiting = asyncio.create_task(lease_while_connected(lease, connection.receive))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    loading.is_ready.set()
    await settle()
    assert loading.held == 0


async def test_an_error_of_the_lease_is_raised(connection):
    async def fail():
        raise runtime_errors.AdapterLoadingError("later")

    with pytest.raises(runtime_errors.AdapterLoadingError):
        await lease_while_connected(fail(), connection.receive)


async def test_other_messages_are_no_leaving(connection, loading):
    connection.messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    waiting = asyncio.create_task(lease_while_connected(loading.lease(), connection.receive))
    await settle()
    assert not waiting.done()
    loading.is_ready.set()
    (await waiting).release()
    assert loading.held == 0
