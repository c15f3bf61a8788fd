"""Two servers on one catalog and store: what one does, the other one shows."""

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest

from fake_runtime import digest_of, full_name, until
from shadow_runtime.errors import AdapterNotFoundError, CatalogError
from shadow_runtime.registry import AdapterState

A, B = full_name("a"), full_name("b")
ONE, TWO = digest_of("one"), digest_of("two")


async def test_another_servers_changes_are_seen_within_two_seconds(open_world):
    here, there = await open_world(), await open_world(poll_seconds=0.5)
    steps = [
        (here.publish("a", "one"), lambda: there.registry.has(A)),
        (here.publish("a", "two"), lambda: there.registry.get(A).digest == TWO),
        (here.registry.rollback(A), lambda: there.registry.get(A).version == 3),
        (here.registry.pin(A), lambda: there.registry.is_pinned(A)),
        (here.registry.unpin(A), lambda: not there.registry.is_pinned(A)),
        (here.registry.delete(A, wait_seconds=5), lambda: not there.registry.has(A)),
    ]
    for change, is_seen in steps:
        await change
        started = time.monotonic()
        await until(is_seen)
        assert time.monotonic() - started < 2


async def test_a_new_version_is_loaded_ahead_where_the_old_one_was_resident(open_world):
    here, there, idle = await open_world(), await open_world(), await open_world()
    await here.publish("a", "one")
    await until(lambda: there.registry.has(A) and idle.registry.has(A))
    lease = await there.registry.lease(A)
    await here.publish("a", "two")
    await until(lambda: TWO in there.loader.held)
    assert there.registry.get(A).digest == TWO
    assert (lease.entry.digest, lease.entry.state) == (ONE, AdapterState.DRAINING)
    assert there.loader.held.keys() == {ONE, TWO}
    lease.release()
    await until(lambda: there.loader.slots.find(ONE) is None)
    await until(lambda: idle.registry.get(A).digest == TWO)
    assert idle.loader.calls == []
    assert (idle.registry.get(A).state, idle.registry.get(A).level) == (
        AdapterState.RESIDENT,
        "disk",
    )


async def test_another_servers_delete_drains_here(open_world):
    here, there = await open_world(), await open_world()
    await here.publish("a", "one")
    await until(lambda: there.registry.has(A))
    lease = await there.registry.lease(A)
    await here.registry.delete(A, wait_seconds=5)
    await until(lambda: not there.registry.has(A))
    assert there.loader.held.keys() == {ONE}
    with pytest.raises(AdapterNotFoundError):
        await there.registry.lease(A)
    lease.release()
    await until(lambda: not there.loader.held)


async def test_another_servers_pin_is_kept_here_and_follows(open_world):
    here, there = await open_world(), await open_world()
    await here.publish("a", "one")
    await here.registry.pin(A)
    await until(lambda: there.loader.slots.pinned == {ONE})
    await here.publish("a", "two")
    await until(lambda: there.loader.slots.pinned == {TWO})
    await here.registry.unpin(A)
    await until(lambda: there.loader.slots.pinned == set())


async def test_changes_begin_with_what_other_servers_did(open_world):
    here, there = await open_world(), await open_world(poll_seconds=60)
    await here.publish("a", "one")
    await here.publish("a", "two")
    assert not there.registry.has(A)
    assert (await there.registry.rollback(A)).entry.version == 3
    assert (await there.publish("a", "one")).is_new is False
    await here.publish("b", "one")
    assert (await there.registry.pin(B)).digest == ONE
    assert (await there.registry.delete(B, wait_seconds=5)).settled.is_set()


async def test_requests_go_on_while_the_database_is_down(open_world, caplog):
    here, there = await open_world(max_host_adapters=1), await open_world()
    await here.publish("a", "one")
    await here.publish("b", "two")
    here.catalog.is_down = True
    polls = here.catalog.calls.count("changes_since")
    with caplog.at_level(logging.WARNING):
        await until(lambda: here.catalog.calls.count("changes_since") >= polls + 4)
        for name in (A, B):
            (await here.registry.lease(name)).release()
        with pytest.raises(CatalogError):
            await here.publish("a", "three")
        with pytest.raises(CatalogError):
            await here.registry.delete(A, wait_seconds=0)
        assert here.registry.get(A).digest == ONE
        await there.publish("a", "two")
        here.catalog.is_down = False
        await until(lambda: here.registry.get(A).digest == TWO)
    told = [r.message for r in caplog.records if r.name.endswith("replica")]
    assert len([m for m in told if "not seen until" in m]) == 1
    assert len([m for m in told if "answers again" in m]) == 1


async def test_a_database_that_hangs_holds_up_no_request(open_world):
    world = await open_world(max_host_adapters=1)
    await world.publish("a", "one")
    await world.publish("b", "two")
    answered = threading.Event()

    def hang(*_):
        answered.wait(30)
        raise CatalogError("at last")

    world.catalog.usage = hang
    # More than the default executor has threads: they read the adapters of requests.
    hung = [asyncio.create_task(world.registry.usage("default")) for _ in range(64)]
    await asyncio.sleep(0.05)
    try:
        for name in (A, B, A):
            async with asyncio.timeout(5):
                (await world.registry.lease(name)).release()
    finally:
        answered.set()
        results = await asyncio.gather(*hung, return_exceptions=True)
    assert {type(r) for r in results} == {CatalogError}
    assert world.loader.num_calls("load") == 5


async def test_bytes_that_are_not_here_yet_are_registered_until_they_come(open_world):
    here = await open_world()
    path = Path((await here.publish("a", "one")).entry.manifest.path)
    hidden = here.store.root / "hidden"
    await asyncio.to_thread(path.rename, hidden)
    there = await open_world()
    assert there.registry.get(A).state is AdapterState.REGISTERED
    await asyncio.to_thread(hidden.rename, path)
    await there.registry.refresh_levels()
    assert there.registry.get(A).state is AdapterState.RESIDENT


async def test_a_database_that_was_put_back_is_taken_for_what_it_is(open_world, tmp_path):
    world = await open_world()
    await world.publish("a", "one")
    await world.publish("b", "two")
    follower = world.registry._changes._follower
    await follower.sync()
    old = world.catalog._catalog.changes_since(0)
    older = type(old)(1, tuple(r for r in old.adapters if r.name == A))
    real = world.catalog._catalog.changes_since
    world.catalog.changes_since = lambda revision: older if revision > 1 else real(revision)
    await follower.sync()
    assert not world.registry.has(B)
    assert world.registry.has(A)
    del world.catalog.changes_since
    await follower.sync()
    assert world.registry.has(B)
