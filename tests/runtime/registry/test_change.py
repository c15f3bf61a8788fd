"""Publish, rollback, delete and pin: what is done, in which order, and what is left when it fails."""

import asyncio

import pytest

from fake_runtime import FakeLoader, digest_of, full_name, stage, turns, until
from shadow_runtime.catalog import CatalogQuota
from shadow_runtime.errors import (
    AdapterExistsError,
    AdapterLoadingError,
    AdapterNotFoundError,
    AdapterTensorError,
    CapacityError,
    CatalogError,
    DigestMismatchError,
    QuotaError,
    StorageError,
)
from shadow_runtime.registry import AdapterState
from shadow_runtime.types import AdapterName

A, B = full_name("a"), full_name("b")
ONE, TWO, THREE = digest_of("one"), digest_of("two"), digest_of("three")


async def test_publish_validates_keeps_loads_commits_and_then_flips(world):
    seen = []

    def progress(stage_name, details):
        row = world.catalog._catalog.find(A)
        seen.append((stage_name, details, row is not None, world.registry.has(A)))

    outcome = await world.publish("a", "one", progress=progress)
    assert seen == [
        ("validated", {"digest": ONE}, False, False),
        ("loading", {}, False, False),
        ("registered", {"version": 1}, True, True),
        ("resident", {}, True, True),
    ]
    assert (outcome.is_new, outcome.replaced) == (True, None)
    assert (outcome.entry.state, outcome.entry.level) == (AdapterState.RESIDENT, "gpu")
    assert outcome.entry.manifest.path == str(world.store.find(ONE).path)
    assert world.staged_names() == []


async def test_new_requests_get_the_new_version_and_running_ones_keep_theirs(world):
    await world.publish("a", "one")
    old = await world.registry.lease(A)
    outcome = await world.publish("a", "two")
    new = await world.registry.lease(A)
    assert (old.entry.digest, new.entry.digest, new.entry.version) == (ONE, TWO, 2)
    assert outcome.replaced is old.entry
    assert old.entry.state is AdapterState.DRAINING
    assert world.registry.find_by_key("default/a@1") is old.entry
    assert world.registry.find_by_key("default/a@2") is new.entry
    assert world.loader.held.keys() == {ONE, TWO}
    old.release()
    new.release()


async def test_slot_of_a_superseded_version_is_free_at_once_and_its_host_copy_stays(world):
    await world.publish("a", "one")
    lease = await world.registry.lease(A)
    replaced = (await world.publish("a", "two")).replaced
    assert world.loader.slots.find(ONE) is not None
    lease.release()
    await turns()
    assert replaced.settled.is_set()
    assert world.loader.slots.find(ONE) is None
    assert ONE in world.loader.held
    assert world.events.evictions == ["superseded"]
    assert world.registry.find_by_key("default/a@1") is None


async def test_the_same_bytes_again_change_nothing_and_load_nothing(world):
    first = await world.publish("a", "one")
    again = await world.publish("a", "one")
    assert (again.is_new, again.entry, again.replaced) == (False, first.entry, None)
    assert world.loader.num_calls("load") == 1
    assert world.staged_names() == []


async def test_the_same_bytes_under_another_name_are_one_copy(world):
    await world.publish("a", "one")
    outcome = await world.publish("b", "one")
    assert outcome.is_new
    assert world.loader.num_calls("load") == 1
    await world.registry.delete(A, wait_seconds=5)
    assert world.loader.held.keys() == {ONE}
    assert world.loader.slots.find(ONE) is not None
    await world.registry.delete(B, wait_seconds=5)
    assert world.loader.held.keys() == set()


async def test_without_wait_the_answer_comes_first_and_the_load_goes_on(world):
    world.loader.gates[ONE] = asyncio.Event()
    outcome = await world.publish("a", "one", wait=False)
    await until(lambda: outcome.entry.state is AdapterState.LOADING)
    world.loader.gates[ONE].set()
    await until(lambda: outcome.entry.state is AdapterState.RESIDENT)
    assert world.events.loads == [("publish", "ok")]


async def test_without_wait_a_failed_load_shows_at_the_entry(world):
    world.loader.failures[ONE] = DigestMismatchError("the files changed")
    outcome = await world.publish("a", "one", wait=False)
    await until(lambda: outcome.entry.state is AdapterState.FAILED)
    assert outcome.entry.failure is world.loader.failures[ONE]
    assert world.events.loads == [("publish", "adapter_changed")]


async def test_a_full_host_tier_publishes_to_disk(open_world):
    world = await open_world(FakeLoader(num_slots=2), max_host_adapters=1)
    await world.publish("a", "one")
    lease = await world.registry.lease(A)
    outcome = await world.publish("b", "two")
    assert (outcome.entry.state, outcome.entry.level) == (AdapterState.RESIDENT, "disk")
    assert world.loader.held.keys() == {ONE}
    lease.release()
    (await world.registry.lease(B)).release()
    assert world.loader.held.keys() == {TWO}


async def test_an_engine_that_is_full_publishes_to_disk(open_world):
    world = await open_world(FakeLoader(max_held=1))
    await world.publish("a", "one")
    outcome = await world.publish("b", "two")
    assert (outcome.is_new, outcome.entry.level) == (True, "disk")


@pytest.mark.parametrize(
    ("error", "text"),
    [(AdapterTensorError, "two broken"), (DigestMismatchError, "two")],
    ids=["validation", "load"],
)
async def test_a_publish_that_fails_changes_nothing(open_world, error, text):
    world = await open_world(collect_after_seconds=0.05)
    world.loader.failures[TWO] = DigestMismatchError("the files changed")
    first = await world.publish("a", "one")
    with pytest.raises(error):
        await world.publish("a", text)
    assert world.registry.get(A) is first.entry
    assert world.catalog._catalog.find(A).current == 1
    assert world.loader.held.keys() == {ONE}
    assert world.staged_names() == []
    await until(lambda: world.store.find(TWO) is None)
    assert world.store.find(ONE) is not None


@pytest.mark.parametrize("failing", ["publish", "changes_since"])
async def test_a_publish_while_the_database_is_down_changes_nothing(world, failing):
    first = await world.publish("a", "one")
    world.catalog.fails.add(failing)
    with pytest.raises(CatalogError):
        await world.publish("a", "two")
    assert world.registry.get(A) is first.entry
    (await world.registry.lease(A)).release()
    await until(lambda: world.loader.held.keys() == {ONE})
    assert world.staged_names() == []


async def test_a_refused_replacement_is_neither_loaded_nor_committed(world):
    await world.publish("a", "one")
    with pytest.raises(AdapterExistsError):
        await world.publish("a", "two", can_replace=False)
    assert (await world.publish("a", "one", can_replace=False)).is_new is False
    assert world.loader.num_calls("load") == 1
    assert world.registry.get(A).digest == ONE


async def test_a_version_that_is_forgotten_leaves_when_its_last_request_ends(open_world):
    world = await open_world(max_versions=2)
    await world.publish("a", "one")
    lease = await world.registry.lease(A)
    await world.publish("a", "two")
    assert (await world.publish("a", "three")).entry.version == 3
    with pytest.raises(AdapterNotFoundError):
        await world.registry.lease(A, 1)
    assert lease.entry.version == 1
    await turns()
    assert ONE in world.loader.held, "a request runs on it"
    lease.release()
    await until(lambda: ONE not in world.loader.held)
    assert (await world.registry.rollback(A)).entry.digest == TWO


@pytest.mark.parametrize("quota", [CatalogQuota(max_adapters=1), CatalogQuota(max_stored_bytes=1)])
async def test_a_publish_over_the_quota_reaches_neither_engine_nor_store(world, quota):
    await world.publish("a", "one")
    with pytest.raises(QuotaError):
        await world.publish("b", "two", quota=quota)
    assert not world.registry.has(B)
    assert world.loader.num_calls("load") == 1
    assert world.loader.held.keys() == {ONE}
    assert world.store.find(TWO) is None
    assert world.staged_names() == []


async def test_a_publish_that_is_over_the_quota_only_in_the_end_leaves_nothing_in_the_engine(world):
    world.loader.gates[TWO] = asyncio.Event()
    publishing = asyncio.create_task(world.publish("b", "two", quota=CatalogQuota(max_adapters=1)))
    await until(lambda: world.loader.num_calls("load") == 1)
    # Meanwhile the tenant's last place goes to another name.
    await world.publish("a", "one")
    world.loader.gates[TWO].set()
    with pytest.raises(QuotaError):
        await publishing
    assert not world.registry.has(B)
    await until(lambda: world.loader.held.keys() == {ONE})


@pytest.mark.parametrize("name", [AdapterName("default", "../x"), AdapterName("Ä", "a")])
async def test_what_is_no_name_is_refused_and_the_staged_files_are_gone(world, name):
    with pytest.raises(ValueError, match="not an adapter's name"):
        await world.registry.publish(name, stage(world.store, "one"))
    assert world.staged_names() == []


async def test_a_publish_goes_on_when_its_caller_goes_away(world):
    world.loader.gates[ONE] = asyncio.Event()
    publishing = asyncio.create_task(world.publish("a", "one"))
    await until(lambda: world.loader.num_calls("load") == 1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    world.loader.gates[ONE].set()
    await until(lambda: world.registry.has(A))


async def test_a_load_that_never_ends_ends_the_publish_and_blocks_no_other(open_world):
    world = await open_world(publish_wait_seconds=0.1)
    world.loader.gates[ONE] = asyncio.Event()
    publishing = asyncio.create_task(world.publish("a", "one"))
    await until(lambda: world.loader.num_calls("load") == 1)
    assert (await world.publish("b", "two")).entry.level == "gpu"
    with pytest.raises(AdapterLoadingError, match=r"within 0\.1 s"):
        await publishing
    assert not world.registry.has(A)
    world.loader.gates[ONE].set()
    await until(lambda: world.loader.held.keys() == {TWO})


async def test_bytes_that_another_server_collected_meanwhile_are_not_published(world):
    world.loader.gates[ONE] = asyncio.Event()
    publishing = asyncio.create_task(world.publish("a", "one"))
    await until(lambda: world.loader.num_calls("load") == 1)
    world.store.remove(ONE)
    world.loader.failures[ONE] = CapacityError("full")
    world.loader.gates[ONE].set()
    with pytest.raises(StorageError):
        await publishing
    assert not world.registry.has(A)


async def test_changes_of_one_name_take_turns_and_those_of_another_do_not_wait(world):
    world.loader.gates[ONE] = asyncio.Event()
    first = asyncio.create_task(world.publish("a", "one"))
    await until(lambda: world.loader.num_calls("load") == 1)
    staged = stage(world.store, "two")
    second = asyncio.create_task(world.registry.publish(A, staged))
    deleting = asyncio.create_task(world.registry.delete(A, wait_seconds=5))
    assert (await world.publish("b", "three")).is_new
    assert not any(task.done() for task in (first, second, deleting))
    world.loader.gates[ONE].set()
    outcomes = await asyncio.gather(first, second, deleting)
    assert [getattr(o, "entry", o).version for o in outcomes] == [1, 2, 2]
    assert not world.registry.has(A)


async def test_rollback_to_what_the_engine_still_holds_takes_no_load(world):
    await world.publish("a", "one")
    await world.publish("a", "two")
    await until(lambda: world.loader.slots.find(ONE) is None)
    outcome = await world.registry.rollback(A)
    assert (outcome.entry.version, outcome.entry.digest, outcome.is_new) == (3, ONE, True)
    assert outcome.replaced.digest == TWO
    assert world.loader.num_calls("load", ONE) == 1
    assert outcome.entry.level == "gpu"
    assert [v.digest for v in world.registry.versions(A)] == [ONE, TWO, ONE]


async def test_rollback_loads_first_what_was_evicted(open_world):
    world = await open_world(max_host_adapters=1)
    await world.publish("a", "one")
    await world.publish("a", "two")
    assert world.loader.held.keys() == {TWO}
    outcome = await world.registry.rollback(A, 1)
    assert (outcome.entry.digest, outcome.entry.level) == (ONE, "gpu")
    assert world.loader.num_calls("load", ONE) == 2


async def test_rollback_to_the_current_bytes_changes_nothing(world):
    entry = (await world.publish("a", "one")).entry
    outcome = await world.registry.rollback(A, 1)
    assert (outcome.is_new, outcome.entry, outcome.replaced) == (False, entry, None)


async def test_rollback_without_a_target_or_its_bytes_changes_nothing(world):
    await world.publish("a", "one")
    with pytest.raises(AdapterNotFoundError):
        await world.registry.rollback(A)
    with pytest.raises(AdapterNotFoundError):
        await world.registry.rollback(A, 7)
    with pytest.raises(AdapterNotFoundError):
        await world.registry.rollback(B)
    await world.publish("a", "two")
    world.store.remove(ONE)
    with pytest.raises(StorageError):
        await world.registry.rollback(A)
    assert world.registry.get(A).digest == TWO


async def test_delete_frees_slot_and_host_memory_after_the_last_request(world):
    await world.publish("a", "one")
    lease = await world.registry.lease(A)
    entry = await world.registry.delete(A, wait_seconds=0.01)
    assert (entry.state, entry.settled.is_set()) == (AdapterState.DRAINING, False)
    assert world.registry.get(A) is entry
    with pytest.raises(AdapterNotFoundError):
        await world.registry.lease(A)
    assert world.loader.held.keys() == {ONE}
    lease.release()
    lease.release()
    await turns()
    assert entry.settled.is_set()
    assert world.loader.held.keys() == set()
    assert world.loader.slots.num_free == 4
    assert world.registry.entries() == []
    assert world.events.evictions == ["deleted"]
    with pytest.raises(AdapterNotFoundError):
        world.registry.get(A)


async def test_delete_waits_for_the_last_request_within_its_wait(world):
    await world.publish("a", "one")
    lease = await world.registry.lease(A)
    deleting = asyncio.create_task(world.registry.delete(A, wait_seconds=5))
    await until(lambda: not world.registry.has(A))
    assert not deleting.done()
    lease.release()
    assert (await deleting).settled.is_set()


async def test_delete_frees_the_host_copies_of_all_versions(world):
    for text in ("one", "two", "three"):
        await world.publish("a", text)
    await world.registry.delete(A, wait_seconds=5)
    await until(lambda: not world.loader.held)
    with pytest.raises(AdapterNotFoundError):
        await world.registry.delete(A, wait_seconds=0)


async def test_a_name_can_be_published_again_while_its_old_entry_drains(world):
    await world.publish("a", "one")
    lease = await world.registry.lease(A)
    await world.registry.delete(A, wait_seconds=0)
    outcome = await world.publish("a", "one")
    assert outcome.entry.version == 2
    assert world.registry.find_by_key(lease.entry.key) is lease.entry
    assert world.registry.find_by_key(outcome.entry.key) is outcome.entry
    assert {e.state for e in world.registry.entries()} == {
        AdapterState.DRAINING,
        AdapterState.RESIDENT,
    }
    lease.release()
    await turns()
    assert world.loader.held.keys() == {ONE}
    assert world.loader.slots.find(ONE) is not None
    assert world.loader.num_calls("load") == 1


async def test_an_unload_that_the_engine_refuses_is_asked_for_again(world):
    await world.publish("a", "one")
    world.loader.refused.add("unload")
    entry = await world.registry.delete(A, wait_seconds=0.05)
    assert not entry.settled.is_set()
    assert world.registry.entries() == [entry]
    world.registry.check_integrity()
    world.loader.refused.clear()
    await asyncio.wait_for(entry.settled.wait(), 5)
    assert world.loader.held.keys() == set()


async def test_a_pin_is_kept_in_its_slot_and_in_the_catalog(world):
    await world.publish("a", "one")
    entry = await world.registry.pin(A)
    assert (entry.digest, world.registry.is_pinned(A)) == (ONE, True)
    assert world.loader.slots.pinned == {ONE}
    assert world.catalog._catalog.find(A).is_pinned
    await world.registry.pin(A)
    assert world.loader.num_calls("pin") == 1
    await world.registry.unpin(A)
    assert world.loader.slots.pinned == set()
    assert not world.catalog._catalog.find(A).is_pinned


async def test_a_pinned_adapter_is_never_evicted(open_world):
    world = await open_world(max_host_adapters=1)
    await world.publish("a", "one")
    await world.registry.pin(A)
    assert (await world.publish("b", "two")).entry.level == "disk"
    assert world.loader.held.keys() == {ONE}
    await world.registry.unpin(A)
    (await world.registry.lease(B)).release()
    assert world.loader.held.keys() == {TWO}


async def test_a_pin_follows_its_name_to_the_new_version(world):
    await world.publish("a", "one")
    await world.registry.pin(A)
    await world.publish("a", "two")
    await until(lambda: world.loader.slots.pinned == {TWO})
    await until(lambda: world.loader.slots.find(ONE) is None)
    assert world.registry.is_pinned(A)
    await world.registry.delete(A, wait_seconds=5)
    await until(lambda: not world.loader.held)
    assert world.loader.slots.pinned == set()


async def test_two_pinned_names_of_one_digest_need_one_pin(world):
    await world.publish("a", "one")
    await world.publish("b", "one")
    await world.registry.pin(A)
    await world.registry.pin(B)
    await world.registry.unpin(A)
    assert world.loader.slots.pinned == {ONE}
    await world.registry.unpin(B)
    assert world.loader.slots.pinned == set()


@pytest.mark.parametrize("what", ["pins", "database", "room"])
async def test_a_pin_that_fails_changes_nothing(open_world, what):
    world = await open_world(max_host_adapters=1 if what == "room" else 8)
    await world.publish("a", "one")
    expected = CapacityError
    lease = None
    if what == "pins":
        await world.publish("b", "two")
        await world.registry.pin(B)
    elif what == "room":
        lease = await world.registry.lease(A)
        await world.publish("b", "two")
    else:
        world.catalog.fails.add("set_pinned")
        expected = CatalogError
    name = B if what == "room" else A
    with pytest.raises(expected):
        await world.registry.pin(name)
    assert not world.registry.is_pinned(name)
    assert world.loader.slots.pinned == ({TWO} if what == "pins" else set())
    assert world.registry._tier.find(digest_of("two" if what == "room" else "one")) is None or (
        not world.registry._tier.find(digest_of("two" if what == "room" else "one")).pinned_by
    )
    if lease is not None:
        lease.release()


async def test_a_pin_of_an_unknown_name_is_refused(world):
    with pytest.raises(AdapterNotFoundError):
        await world.registry.pin(A)
    with pytest.raises(AdapterNotFoundError):
        await world.registry.unpin(A)


async def test_publishing_the_bytes_again_heals_what_the_disk_has_damaged(world):
    world.loader.failures[ONE] = DigestMismatchError("the files changed")
    outcome = await world.publish("a", "one", wait=False)
    await until(lambda: outcome.entry.state is AdapterState.FAILED)
    (file,) = world.store.find(ONE).path.iterdir()
    right = file.read_bytes()
    file.write_bytes(b"damaged")
    del world.loader.failures[ONE]
    again = await world.publish("a", "one")
    assert file.read_bytes() == right
    assert (again.is_new, again.entry.state) == (False, AdapterState.RESIDENT)


async def test_bytes_that_the_engine_read_or_has_no_room_for_are_left_alone(world):
    await world.publish("a", "one")
    world.loader.failures[TWO] = CapacityError("full")
    await world.publish("b", "two", wait=False)
    files = [next(iter(world.store.find(digest).path.iterdir())) for digest in (ONE, TWO)]
    inodes = [file.stat().st_ino for file in files]
    for name, content in (("a", "one"), ("b", "two")):
        await world.publish(name, content, wait=False)
    assert [file.stat().st_ino for file in files] == inodes
