"""Leases: which adapter a request gets, how long it waits, and what is left of one that gives up."""

import asyncio
import time

import pytest

from fake_runtime import FakeLoader, digest_of, full_name, stage, turns, until
from shadow_runtime.errors import (
    AdapterFailedError,
    AdapterLoadingError,
    AdapterNotFoundError,
    AdapterTensorError,
)
from shadow_runtime.registry import AdapterState

A, B, C = full_name("a"), full_name("b"), full_name("c")
ONE, TWO, THREE = digest_of("one"), digest_of("two"), digest_of("three")


async def one_of_two_on_disk(open_world, **settings):
    """Return a world with one place, `a` = one on disk and `b` = two in it."""
    world = await open_world(max_host_adapters=1, **settings)
    await world.publish("a", "one")
    await world.publish("b", "two")
    return world


async def test_a_lease_of_a_resident_adapter_never_lets_the_loop_run(world):
    await world.publish("a", "one")
    coroutine = world.registry.lease(A)
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    lease = done.value.value
    assert lease.entry.num_leases == 1
    assert world.events.waits == []
    with lease:
        pass
    lease.release()
    assert lease.entry.num_leases == 0


async def test_unknown_names_and_versions_are_not_found(world):
    await world.publish("a", "one")
    for name, version in ((B, None), (A, 2), (A, 0), (full_name("a", "acme"), None)):
        with pytest.raises(AdapterNotFoundError):
            await world.registry.lease(name, version)
        with pytest.raises(AdapterNotFoundError):
            world.registry.get(name, version)
        assert not world.registry.has(name, version)
    assert world.registry.has(A, 1)


async def test_an_entry_shows_its_load_from_the_turn_in_which_it_is_asked_for(open_world):
    world = await one_of_two_on_disk(open_world)
    world.loader.gates[ONE] = asyncio.Event()
    waiting = asyncio.create_task(world.registry.lease(A))
    shown = []
    for _ in range(30):
        await turns(1)
        world.registry.check_integrity()  # compares with what the tier knows
        shown.append(world.registry.get(A).state)
    assert AdapterState.LOADING in shown
    world.loader.gates.pop(ONE).set()
    (await waiting).release()


async def test_the_first_request_of_an_evicted_adapter_waits_and_others_go_on(open_world):
    world = await one_of_two_on_disk(open_world)
    entry = world.registry.get(A)
    assert (entry.state, entry.level) == (AdapterState.RESIDENT, "disk")
    world.loader.gates[ONE] = asyncio.Event()
    waiting = asyncio.create_task(world.registry.lease(A))
    await until(lambda: world.loader.num_calls("load", ONE) == 2)
    assert entry.state is AdapterState.LOADING
    assert entry.num_leases == 1
    world.loader.gates[ONE].set()
    lease = await waiting
    assert (lease.entry, entry.state, entry.level) == (entry, AdapterState.RESIDENT, "gpu")
    assert len(world.events.waits) == 1
    assert world.events.loads[-1] == ("store", "ok")
    assert world.events.evictions == ["capacity", "capacity"]
    lease.release()


async def test_requests_for_one_adapter_share_one_load(open_world):
    world = await one_of_two_on_disk(open_world)
    leases = await asyncio.gather(*(world.registry.lease(A) for _ in range(20)))
    assert world.loader.num_calls("load", ONE) == 2
    assert world.registry.get(A).num_leases == 20
    for lease in leases:
        lease.release()
    assert world.registry.get(A).num_leases == 0


async def test_a_waiting_request_gets_the_version_that_its_name_had_when_it_asked(open_world):
    world = await one_of_two_on_disk(open_world, publish_wait_seconds=0.1)
    world.loader.gates[ONE] = asyncio.Event()
    waiting = asyncio.create_task(world.registry.lease(A))
    await until(lambda: world.loader.num_calls("load", ONE) == 2)
    assert (await world.publish("a", "three")).entry.level == "disk"
    world.loader.gates[ONE].set()
    lease = await waiting
    assert (lease.entry.digest, lease.entry.state) == (ONE, AdapterState.DRAINING)
    assert ONE in world.loader.held
    lease.release()


async def test_a_wait_that_takes_too_long_leaves_no_lease_behind(open_world):
    world = await one_of_two_on_disk(open_world, adapter_wait_seconds=0.05)
    world.loader.gates[ONE] = asyncio.Event()
    with pytest.raises(AdapterLoadingError, match=r"'a' was not loaded within 0\.05 s"):
        await world.registry.lease(A)
    assert world.registry.get(A).num_leases == 0
    assert world.events.waits[0] >= 0.05
    world.loader.gates[ONE].set()
    await until(lambda: world.registry.get(A).state is AdapterState.RESIDENT)
    (await world.registry.lease(A)).release()


async def test_a_cancelled_wait_leaves_no_lease_behind(open_world):
    world = await one_of_two_on_disk(open_world)
    world.loader.gates[ONE] = asyncio.Event()
    waiting = asyncio.create_task(world.registry.lease(A))
    other = asyncio.create_task(world.registry.lease(A))
    await until(lambda: world.loader.num_calls("load", ONE) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert world.registry.get(A).num_leases == 1
    world.loader.gates[ONE].set()
    (await other).release()


async def test_loads_that_hang_block_neither_other_adapters_nor_the_loop(open_world):
    world = await open_world(adapter_wait_seconds=0.4, max_concurrent_loads=2, max_host_adapters=4)
    texts = [f"hung {number}" for number in range(3)]
    for text in texts:
        world.loader.gates[digest_of(text)] = asyncio.Event()
        await world.publish(text.replace(" ", "-"), text, wait=False)
    await until(lambda: world.loader.num_calls("load") == 2)
    await world.publish("a", "one", wait=False)
    started = time.monotonic()
    (await world.registry.lease(A)).release()
    assert time.monotonic() - started < 0.4
    assert world.loader.num_calls("load") == 4


async def test_a_failed_load_is_told_quickly_and_tried_again_later(open_world):
    world = await one_of_two_on_disk(open_world, retry_failed_seconds=0.2)
    world.loader.failures[ONE] = AdapterTensorError("the engine found a NaN")
    with pytest.raises(AdapterFailedError, match="'a' cannot be loaded: the engine found a NaN"):
        await world.registry.lease(A)
    entry = world.registry.get(A)
    assert (entry.state, entry.num_leases) == (AdapterState.FAILED, 0)
    assert entry.failure is world.loader.failures[ONE]
    del world.loader.failures[ONE]
    with pytest.raises(AdapterFailedError):
        await world.registry.lease(A)
    assert world.loader.num_calls("load", ONE) == 2
    (await world.registry.lease(B)).release()
    await asyncio.sleep(0.2)
    (await world.registry.lease(A)).release()
    assert (entry.state, entry.failure) == (AdapterState.RESIDENT, None)


async def test_a_request_waits_for_room_when_every_place_is_leased(open_world):
    world = await one_of_two_on_disk(open_world)
    holder = await world.registry.lease(B)
    waiting = asyncio.create_task(world.registry.lease(A))
    await turns(200)
    assert not waiting.done()
    holder.release()
    (await waiting).release()
    assert world.loader.held.keys() == {ONE}


async def test_a_request_that_finds_no_room_in_time_is_told_so(open_world):
    world = await one_of_two_on_disk(open_world, adapter_wait_seconds=0.05)
    holder = await world.registry.lease(B)
    with pytest.raises(AdapterLoadingError):
        await world.registry.lease(A)
    assert world.loader.held.keys() == {TWO}
    holder.release()
    await turns(200)
    # Nobody waits any more, so nothing is loaded or evicted.
    assert world.loader.held.keys() == {TWO}


async def test_an_old_version_can_be_asked_for_by_its_number(world):
    await world.publish("a", "one")
    await world.publish("a", "two")
    await until(lambda: world.registry.find_by_key("default/a@1") is None)
    picture = world.registry.get(A, 1)
    assert (picture.state, picture.level) == (AdapterState.RESIDENT, "host")
    lease = await world.registry.lease(A, 1)
    assert (lease.entry.digest, lease.entry.state) == (ONE, AdapterState.RESIDENT)
    assert world.registry.get(A).digest == TWO
    assert world.registry.find_by_key("default/a@1") is lease.entry
    assert world.loader.use(ONE) is not None
    lease.release()
    await turns()
    assert world.loader.slots.find(ONE) is None
    assert world.registry.find_by_key("default/a@1") is None
    assert world.loader.num_calls("load", ONE) == 1


async def test_a_draining_version_that_is_asked_for_answers_again(world):
    await world.publish("a", "one")
    first = await world.registry.lease(A)
    await world.publish("a", "two")
    assert first.entry.state is AdapterState.DRAINING
    second = await world.registry.lease(A, 1)
    assert second.entry is first.entry
    assert first.entry.state is AdapterState.RESIDENT
    first.release()
    await turns()
    assert not first.entry.settled.is_set()
    second.release()
    await turns()
    assert first.entry.settled.is_set()


async def test_a_version_of_a_deleted_name_answers_nobody(world):
    await world.publish("a", "one")
    await world.publish("a", "two")
    lease = await world.registry.lease(A, 1)
    await world.registry.delete(A, wait_seconds=0)
    assert lease.entry.state is AdapterState.DRAINING
    with pytest.raises(AdapterNotFoundError):
        await world.registry.lease(A, 1)
    assert ONE in world.loader.held
    lease.release()
    await until(lambda: not world.loader.held)


async def test_missing_bytes_are_told_and_found_when_they_appear(open_world):
    world = await one_of_two_on_disk(open_world)
    path = world.store.find(ONE).path
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    with pytest.raises(AdapterFailedError, match="not in this server's store"):
        await world.registry.lease(A)
    assert world.registry.get(A).state is AdapterState.REGISTERED
    elsewhere.rename(path)
    (await world.registry.lease(A)).release()


async def test_levels_are_what_the_engine_says(world):
    await world.publish("a", "one")
    world.loader.slots.release(ONE)
    assert world.registry.get(A).level == "gpu"
    await world.registry.refresh_levels()
    assert world.registry.get(A).level == "host"


async def test_a_tenant_sees_and_counts_its_own(world):
    await world.publish("a", "one")
    for text in ("one", "two"):
        await publish_for(world, "acme", text)
    assert [str(e.name) for e in world.registry.entries("acme")] == ["acme/one", "acme/two"]
    assert len(world.registry.entries()) == 3
    assert world.registry.num_resident("acme") == 2
    assert world.registry.num_resident("default") == 1
    assert world.registry.num_resident("nobody") == 0
    assert (await world.registry.usage("acme")).num_adapters == 2
    assert world.loader.num_calls("load") == 2


async def publish_for(world, tenant, text):
    staged = await asyncio.to_thread(stage, world.store, text)
    return await world.registry.publish(full_name(text, tenant), staged)


async def test_room_for_a_tenant_is_made_of_what_it_used_longest_ago(world):
    for tenant, text in (("acme", "one"), ("acme", "two"), ("other", "two"), ("acme", "three")):
        await publish_for(world, tenant, text)
    assert await world.registry.make_room("acme", 4)
    assert len(world.loader.held) == 3
    assert await world.registry.make_room("acme", 3)
    # `two` is another tenant's, too.
    assert world.loader.held.keys() == {TWO, THREE}
    lease = await world.registry.lease(full_name("three", "acme"))
    assert not await world.registry.make_room("acme", 1)
    assert world.loader.held.keys() == {TWO, THREE}
    lease.release()
    assert not await world.registry.make_room("acme", 1)
    assert world.loader.held.keys() == {TWO}


async def test_room_for_a_tenant_counts_what_is_being_loaded(world):
    await publish_for(world, "acme", "one")
    assert await world.registry.make_room("acme", 1)
    world.loader.gates[ONE] = asyncio.Event()
    waiting = asyncio.create_task(world.registry.lease(full_name("one", "acme")))
    await until(lambda: world.registry.num_resident("acme") == 1)
    assert world.loader.held.keys() == set()
    assert not await world.registry.make_room("acme", 1, TWO)
    # What is on its way needs no other place.
    assert await world.registry.make_room("acme", 1, ONE)
    world.loader.gates[ONE].set()
    (await waiting).release()


async def test_integrity_finds_a_count_that_does_not_add_up(world):
    await world.publish("a", "one")
    entry = world.registry.get(A)
    entry.num_leases += 1
    with pytest.raises(RuntimeError, match="leases"):
        world.registry.check_integrity()
    entry.num_leases -= 2
    with pytest.raises(RuntimeError, match="-1 leases"):
        world.registry.check_integrity()
    entry.num_leases += 1
    entry.state = AdapterState.FAILED
    with pytest.raises(RuntimeError, match="shows FAILED"):
        world.registry.check_integrity()
    entry.state = AdapterState.RESIDENT
    world.registry.check_integrity()


async def test_close_ends_everything_while_loads_hang(open_world):
    world = await open_world(FakeLoader())
    world.loader.gates[ONE] = asyncio.Event()
    await world.publish("a", "one", wait=False)
    await until(lambda: world.loader.num_calls("load") == 1)
    before = len(asyncio.all_tasks())
    assert before > 1
    await world.registry.close()
    assert len(asyncio.all_tasks()) == 1
