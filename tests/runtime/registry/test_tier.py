"""The host tier: bounds, turns, and what happens when the engine refuses."""

import asyncio
import itertools

import pytest

from fake_runtime import (
    FakeLoader,
    RecordedEvents,
    digest_of,
    fake_manifest,
    full_name,
    turns,
    until,
)
from shadow_runtime.errors import CapacityError, DigestMismatchError
from shadow_runtime.registry import RegistrySettings
from shadow_runtime.registry.background import Background
from shadow_runtime.registry.holding import Holding, Place
from shadow_runtime.registry.tier import HostTier

ONE, TWO, THREE = digest_of("one"), digest_of("two"), digest_of("three")


@pytest.fixture
async def make_tier(tmp_path):
    """Return a function that makes a tier with a fake engine; fake adapters lie below `tmp_path`."""
    backgrounds = []

    def make(loader=None, **settings):
        background = Background()
        backgrounds.append(background)

        async def locate(manifest):
            return manifest

        loader = loader or FakeLoader()
        chosen = RegistrySettings(**{"max_concurrent_loads": 8, **settings})
        tier = HostTier(loader, locate, chosen, background, lambda digest: None)
        tier.events = RecordedEvents()
        return tier, loader

    yield make
    for background in backgrounds:
        await background.cancel()


@pytest.fixture
def adapter(tmp_path):
    """Return a function that writes a fake adapter and returns its manifest."""
    numbers = itertools.count()

    def write(text, num_bytes=100):
        path = tmp_path / f"adapter-{next(numbers)}"
        path.mkdir()
        (path / "adapter_config.json").write_text(text)
        return fake_manifest(digest_of(text), str(path), num_bytes)

    return write


async def test_places_are_bounded_whoever_loads_at_once(make_tier, adapter):
    tier, loader = make_tier(max_host_adapters=3)
    manifests = [adapter(f"text {number}") for number in range(10)]
    await asyncio.gather(*(tier.ensure(m, "store", is_patient=True) for m in manifests))
    assert (loader.peak_held, len(loader.held)) == (3, 3)
    tier.check_integrity()


async def test_bytes_are_bounded_and_as_many_leave_as_it_takes(make_tier, adapter):
    tier, loader = make_tier(max_host_bytes=250)
    for text in ("one", "two"):
        await tier.ensure(adapter(text), "store", is_patient=False)
    await tier.ensure(adapter("three", 200), "store", is_patient=False)
    assert loader.held.keys() == {THREE}
    with pytest.raises(CapacityError, match="of 250"):
        await tier.ensure(adapter("four", 251), "store", is_patient=True)
    assert loader.held.keys() == {THREE}


async def test_nobody_leaves_for_one_who_cannot_fit_anyway(make_tier, adapter):
    tier, loader = make_tier(max_host_bytes=300)
    one = adapter("one", 200)
    tier.lease(one)
    await tier.ensure(one, "store", is_patient=False)
    await tier.ensure(adapter("two"), "store", is_patient=False)
    with pytest.raises(CapacityError):
        await tier.ensure(adapter("three", 200), "store", is_patient=False)
    assert loader.held.keys() == {ONE, TWO}


@pytest.mark.parametrize("reliance", ["lease", "hold", "pin"])
async def test_what_somebody_relies_on_is_not_evicted(make_tier, adapter, reliance):
    tier, loader = make_tier(max_host_adapters=1)
    one = adapter("one")
    if reliance == "lease":
        tier.lease(one)
    elif reliance == "pin":
        tier.pin(one, full_name("a"))
    hold = tier.hold(one)
    if reliance == "hold":
        hold.__enter__()
    await tier.ensure(one, "store", is_patient=False)
    with pytest.raises(CapacityError):
        await tier.ensure(adapter("two"), "store", is_patient=False)
    if reliance == "lease":
        tier.release(ONE)
    elif reliance == "pin":
        tier.unpin(ONE, full_name("a"))
    else:
        hold.__exit__(None, None, None)
    await tier.ensure(adapter("two"), "store", is_patient=False)
    assert loader.held.keys() == {TWO}


async def test_loads_are_bounded_in_number(make_tier, adapter):
    tier, loader = make_tier(max_concurrent_loads=2)
    manifests = [adapter(f"text {number}") for number in range(6)]
    await asyncio.gather(*(tier.ensure(m, "store", is_patient=True) for m in manifests))
    assert loader.max_concurrent_loads == 2


async def test_a_request_during_an_eviction_waits_and_loads_again(make_tier, adapter):
    class Loader(FakeLoader):
        gate = asyncio.Event()

        async def unload(self, digest):
            await self.gate.wait()
            await super().unload(digest)

    tier, loader = make_tier(Loader(), max_host_adapters=1)
    one = adapter("one")
    await tier.ensure(one, "store", is_patient=False)
    other = asyncio.create_task(tier.ensure(adapter("two"), "store", is_patient=False))
    await until(lambda: tier.find(ONE).place is Place.LEAVING)
    assert not tier.is_held(ONE)
    tier.lease(one)
    again = asyncio.create_task(tier.ensure(one, "store", is_patient=True))
    await turns()
    assert not again.done()
    loader.gate.set()
    await asyncio.gather(other, again)
    assert loader.held.keys() == {ONE}
    assert loader.num_calls("load", ONE) == 2
    assert loader.violations == []


async def test_an_impatient_one_does_not_wait_with_a_patient_one(make_tier, adapter):
    tier, _ = make_tier(max_host_adapters=1)
    one, two = adapter("one"), adapter("two")
    tier.lease(one)
    await tier.ensure(one, "store", is_patient=False)
    patient = asyncio.create_task(tier.ensure(two, "store", is_patient=True))
    impatient = asyncio.create_task(tier.ensure(two, "publish", is_patient=False))
    with pytest.raises(CapacityError):
        async with asyncio.timeout(1):
            await impatient
    assert not patient.done()
    tier.release(ONE)
    await patient


async def test_an_eviction_that_the_engine_refuses_is_told_and_another_one_leaves(
    make_tier, adapter
):
    tier, loader = make_tier(max_host_adapters=2)
    for text in ("one", "two"):
        await tier.ensure(adapter(text), "store", is_patient=False)
        await asyncio.sleep(0.01)
    loader.refused.add("unload")
    three = adapter("three")
    with pytest.raises(RuntimeError, match="refuses unload"):
        await tier.ensure(three, "store", is_patient=False)
    assert loader.held.keys() == {ONE, TWO}
    tier.check_integrity()
    loader.refused.clear()
    await tier.ensure(three, "store", is_patient=False)
    assert loader.held.keys() == {ONE, THREE}


async def test_a_prefetch_that_fails_does_not_fail_the_load(make_tier, adapter):
    class Loader(FakeLoader):
        async def prefetch(self, digest):
            raise DigestMismatchError("no slot today")

    tier, _ = make_tier(Loader())
    await tier.ensure(adapter("one"), "store", is_patient=False)
    assert tier.find(ONE).level == "host"


async def test_nothing_is_remembered_of_what_nobody_uses(make_tier, adapter):
    tier, loader = make_tier(max_host_adapters=1)
    for number in range(5):
        manifest = adapter(f"text {number}")
        tier.lease(manifest)
        await tier.ensure(manifest, "store", is_patient=True)
        tier.release(manifest.digest)
    await turns()
    assert [h.digest for h in tier._holdings.all()] == list(loader.held)
    await tier.unload(digest_of("text 4"), lambda: False)
    assert tier._holdings.all() == []


def test_integrity_names_what_is_wrong(make_tier, adapter):
    tier, _ = make_tier(max_host_adapters=1)
    holding = tier._holdings.open(fake_manifest(ONE))
    for field, value, text in (
        ("num_leases", -1, "leases"),
        ("place", Place.LOADING, "nothing loads it"),
        ("is_engine_pinned", True, "without being there"),
    ):
        old = getattr(holding, field)
        setattr(holding, field, value)
        with pytest.raises(RuntimeError, match=text):
            tier.check_integrity()
        setattr(holding, field, old)
    for digest in (ONE, TWO):
        tier._holdings._by_digest[digest] = Holding(fake_manifest(digest), place=Place.HELD)
    with pytest.raises(RuntimeError, match="over its bound"):
        tier.check_integrity()
