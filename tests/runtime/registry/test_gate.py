"""Bounds on work that runs at the same time."""

import asyncio

import pytest

from fake_runtime import turns, until
from shadow_runtime.registry.gate import KeyedLock, LoadGate


async def test_no_more_than_the_bound_are_inside_and_the_first_comes_first():
    gate = LoadGate(2, 60.0)
    inside, order = set(), []
    leave = {number: asyncio.Event() for number in range(4)}

    async def load(number):
        async with gate.enter():
            inside.add(number)
            order.append(number)
            await leave[number].wait()
        inside.discard(number)

    tasks = [asyncio.create_task(load(number)) for number in range(4)]
    await turns()
    assert inside == {0, 1}
    leave[1].set()
    await turns()
    assert inside == {0, 2}
    for event in leave.values():
        event.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


async def test_one_that_hangs_gives_its_place_up_once():
    gate = LoadGate(1, 0.02)
    never, entered = asyncio.Event(), []

    async def load(number, wait):
        async with gate.enter():
            entered.append(number)
            await wait.wait()

    hung = asyncio.create_task(load(0, never))
    gone = asyncio.Event()
    gone.set()
    await asyncio.create_task(load(1, gone))
    assert entered == [0, 1]
    never.set()
    await hung
    holder = asyncio.create_task(load(2, asyncio.Event()))
    waiter = asyncio.create_task(load(3, gone))
    await turns()
    # The end of the hung one has not made a second place.
    assert entered == [0, 1, 2]
    await waiter
    holder.cancel()


async def test_a_cancelled_waiter_takes_no_place():
    gate = LoadGate(1, 60.0)
    async with gate.enter():
        waiter = asyncio.create_task(gate.enter().__aenter__())
        await turns()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    async with asyncio.timeout(1), gate.enter():
        pass


async def test_a_key_has_one_holder_and_other_keys_do_not_wait():
    locks = KeyedLock()
    order = []

    async def hold(key, label):
        async with locks.hold(key):
            order.append(label)
            await asyncio.sleep(0.01)

    await asyncio.gather(hold("a", "a1"), hold("a", "a2"), hold("b", "b1"))
    assert order == ["a1", "b1", "a2"]
    await until(lambda: not locks._locks)
    assert not locks._users
