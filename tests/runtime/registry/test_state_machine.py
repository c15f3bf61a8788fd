"""Registry and slots under arbitrary orders of events, and the proof that the machine notices what is broken."""

import dataclasses
import time
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

import registry_machine
from registry_machine import RegistryMachine, quiet
from shadow_runtime.catalog.record import AdapterRecord
from shadow_runtime.errors import ShadowError
from shadow_runtime.registry.change import AdapterChanges
from shadow_runtime.registry.holding import Holding, Holdings
from shadow_runtime.registry.live import LiveEntries
from shadow_runtime.registry.registry import AdapterRegistry
from shadow_runtime.registry.replica import CatalogFollower
from shadow_runtime.registry.room import HostRoom
from shadow_runtime.registry.tier import HostTier

MIN_STEPS = 10_000

EXPLORE = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    report_multiple_bugs=False,
)


def test_ten_thousand_steps_keep_every_promise(record_property, capsys):
    class Machine(RegistryMachine):
        num_steps = 0

    started = time.monotonic()
    while Machine.num_steps < MIN_STEPS:
        quiet(lambda: run_state_machine_as_test(Machine, settings=EXPLORE))
    seconds = time.monotonic() - started
    record_property("num_steps", Machine.num_steps)
    with capsys.disabled():
        print(f"\nregistry state machine: {Machine.num_steps} steps in {seconds:.0f} s")
        print(dict(Machine.kinds.most_common()))
    assert Machine.num_steps >= MIN_STEPS


# Breakages: each one turns the machine red ------------------------------------------------------------------------


def flip_before_the_commit(patch):
    commit_after = AdapterChanges._make

    async def make(self, name, manifest, commit, report, should_wait):
        record = self._bindings.find_record(name)
        if record is not None and record.versions[-1].digest != manifest.digest:
            last = record.versions[-1]
            artifact = dataclasses.replace(last.artifact, manifest=manifest)
            forged = dataclasses.replace(last, version=last.version + 1, artifact=artifact)
            self._live.apply(
                AdapterRecord(
                    name,
                    forged.version,
                    (*record.versions, forged),
                    record.is_pinned,
                    False,
                    record.revision + 1,
                )
            )
        return await commit_after(self, name, manifest, commit, report, should_wait)

    patch.setattr(AdapterChanges, "_make", make)


def acknowledge_without_a_commit(patch):
    real = AdapterChanges._make

    async def make(self, name, manifest, commit, report, should_wait):
        def uncommitted():
            published = commit()
            if published.is_new:
                self._catalog._catalog.delete(name)
            return published

        return await real(self, name, manifest, uncommitted, report, should_wait)

    patch.setattr(AdapterChanges, "_make", make)


def evict_what_is_leased(patch):
    patch.setattr(Holding, "is_evictable", property(lambda self: self.is_held))


def evict_what_is_pinned(patch):
    used = property(lambda self: bool(self.num_leases or self.num_holds))
    patch.setattr(Holding, "is_used", used)
    patch.setattr(HostTier, "_unpin", _do_nothing)


def forget_to_release(patch):
    patch.setattr(HostTier, "release", lambda self, digest: None)


def count_the_lease_after_the_wait(patch):
    lease = AdapterRegistry.lease

    async def late(self, name, version=None):
        entry = self._resolve(name, version)
        if not self._tier.is_held(entry.digest):
            await self._wait_until_resident(entry)
        return await lease(self, name, version)

    patch.setattr(AdapterRegistry, "lease", late)


def leak_the_lease_of_a_cancelled_wait(patch):
    async def lease(self, name, version=None):
        lease = self._live.lease(self._resolve(name, version))
        if not self._tier.is_held(lease.entry.digest):
            try:
                await self._wait_until_resident(lease.entry)
            except Exception:
                lease.release()
                raise
        return lease

    patch.setattr(AdapterRegistry, "lease", lease)


def drop_the_replica_poll(patch):
    patch.setattr(CatalogFollower, "run", _do_nothing)
    patch.setattr(RegistryMachine, "see_seconds", 0.3)


def keep_the_slot_of_a_superseded_version(patch):
    patch.setattr(HostTier, "release_slot", _do_nothing)


def keep_the_memory_of_a_deleted_adapter(patch):
    patch.setattr(HostTier, "unload", _do_nothing)


def hold_one_too_many(patch):
    def fits(self, others, holding):
        return len(others) <= self._max_adapters

    patch.setattr(HostRoom, "_fits", fits)


def call_the_engine_out_of_turn(patch):
    @asynccontextmanager
    async def turn(self, digest):
        yield self.find(digest)

    patch.setattr(Holdings, "turn", turn)


def forget_to_move_the_pin(patch):
    patch.setattr(LiveEntries, "_move_pin", lambda self, change: None)


async def _do_nothing(self, *_args):
    """Stand in for work that is left out."""


SABOTAGE = [
    flip_before_the_commit,
    acknowledge_without_a_commit,
    evict_what_is_leased,
    evict_what_is_pinned,
    forget_to_release,
    count_the_lease_after_the_wait,
    leak_the_lease_of_a_cancelled_wait,
    drop_the_replica_poll,
    keep_the_slot_of_a_superseded_version,
    keep_the_memory_of_a_deleted_adapter,
    hold_one_too_many,
    call_the_engine_out_of_turn,
    forget_to_move_the_pin,
]


@pytest.mark.slow
@pytest.mark.parametrize("breakage", SABOTAGE, ids=lambda b: b.__name__)
def test_the_machine_notices_each_breakage(monkeypatch, breakage):
    class Machine(RegistryMachine):
        num_steps = 0

    breakage(monkeypatch)
    monkeypatch.setattr(registry_machine, "HANG_SECONDS", 2.0)
    chosen = settings(EXPLORE, max_examples=300, phases=[Phase.generate])
    with pytest.raises(BaseException) as noticed:  # noqa: PT011 - whatever it is, it is told
        quiet(lambda: run_state_machine_as_test(Machine, settings=chosen))
    # Timing decides how soon it shows, so a run may fail where its repetition does not: that is noticed, too.
    told = (AssertionError, RuntimeError, TimeoutError, ShadowError, ExceptionGroup, Flaky)
    assert isinstance(noticed.value, told)
