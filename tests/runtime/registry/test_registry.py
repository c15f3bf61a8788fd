"""The registry against a model of what it must do, under arbitrary orders of events."""

import asyncio
import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shadow_runtime.errors import AdapterExistsError, AdapterFileError, AdapterNotFoundError
from shadow_runtime.registry import AdapterRegistry, AdapterState, is_adapter_name
from shadow_runtime.types import AdapterManifest, BackboneSpec

BACKBONE = BackboneSpec(
    **dict.fromkeys((f.name for f in dataclasses.fields(BackboneSpec)), 0)  # type: ignore[arg-type]
)


def manifest(digest: str) -> AdapterManifest:
    fields = dict.fromkeys((f.name for f in dataclasses.fields(AdapterManifest)), 0)
    return AdapterManifest(**{**fields, "digest": digest, "backbone": BACKBONE})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Handle:
    name: str
    manifest: AdapterManifest


@dataclass
class RecordingLoader:
    """Takes a path as the digest; `held` is what the engine holds."""

    held: set[str] = field(default_factory=set)
    num_unloads: int = 0
    refuses_unload: bool = False
    gate: asyncio.Event | None = None
    num_concurrent: int = 0

    async def load(self, name, path, backbone_config=None):
        await self._turn()
        if path == "bad":
            raise AdapterFileError("truncated")
        self.held.add(path)
        return Handle(name, manifest(path))

    async def unload(self, handle):
        await self._turn()
        if self.refuses_unload:
            raise RuntimeError("engine says no")
        if handle.manifest.digest not in self.held:
            raise RuntimeError("unloaded twice")
        self.held.remove(handle.manifest.digest)
        self.num_unloads += 1

    async def _turn(self):
        self.num_concurrent += 1
        if self.num_concurrent > 1:
            raise RuntimeError("two engine calls at once")
        for _ in range(3):
            await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        self.num_concurrent -= 1


async def settle() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


def run(scenario):
    loader = RecordingLoader()
    registry = AdapterRegistry(loader)
    asyncio.run(scenario(registry, loader))
    registry.check_integrity()


def test_load_binds_name_and_lease_pins_digest():
    async def scenario(registry, loader):
        outcome = await registry.load("math", "d1")
        assert outcome.is_new
        assert outcome.entry.digest == "d1"
        lease = registry.lease("math")
        entry = await registry.unload("math", wait_seconds=0.01)
        assert entry.state is AdapterState.DRAINING
        assert not entry.settled.is_set()
        assert loader.held == {"d1"}
        with pytest.raises(AdapterNotFoundError):
            registry.lease("math")
        assert registry.find_by_key(entry.key) is entry
        lease.release()
        lease.release()
        await asyncio.wait_for(entry.settled.wait(), 5)
        assert loader.held == set()
        assert registry.entries() == []
        with pytest.raises(AdapterNotFoundError):
            registry.get("math")

    run(scenario)


def test_unload_waits_for_last_lease_within_the_wait():
    async def scenario(registry, loader):
        await registry.load("math", "d1")
        lease = registry.lease("math")
        unloading = asyncio.create_task(registry.unload("math", wait_seconds=5))
        await settle()
        assert not unloading.done()
        lease.release()
        entry = await unloading
        assert entry.settled.is_set()
        assert loader.held == set()

    run(scenario)


def test_same_bytes_are_idempotent_and_cost_no_entry():
    async def scenario(registry, loader):
        first = await registry.load("math", "d1")
        again = await registry.load("math", "d1")
        assert not again.is_new
        assert again.entry is first.entry
        assert len(registry.entries()) == 1

    run(scenario)


def test_other_bytes_replace_and_the_old_ones_leave_after_their_last_request():
    async def scenario(registry, loader):
        await registry.load("math", "d1")
        old_lease = registry.lease("math")
        outcome = await registry.load("math", "d2")
        assert outcome.replaced is old_lease.entry
        new_lease = registry.lease("math")
        assert (old_lease.entry.digest, new_lease.entry.digest) == ("d1", "d2")
        assert loader.held == {"d1", "d2"}
        old_lease.release()
        await settle()
        assert loader.held == {"d2"}
        new_lease.release()

    run(scenario)


def test_refused_replacement_leaves_the_name_and_the_engine_as_they_were():
    async def scenario(registry, loader):
        await registry.load("math", "d1")
        with pytest.raises(AdapterExistsError):
            await registry.load("math", "d2", can_replace=False)
        assert loader.held == {"d1"}
        assert registry.get("math").digest == "d1"

    run(scenario)


def test_failed_load_changes_nothing():
    async def scenario(registry, loader):
        await registry.load("math", "d1")
        with pytest.raises(AdapterFileError):
            await registry.load("math", "bad")
        with pytest.raises(AdapterFileError):
            await registry.load("other", "bad")
        assert registry.get("math").digest == "d1"
        assert not registry.has("other")

    # The loader counts a raised call as running, so give it back.
    class Loader(RecordingLoader):
        async def _turn(self):
            await asyncio.sleep(0)

    loader = Loader()
    registry = AdapterRegistry(loader)
    asyncio.run(scenario(registry, loader))
    registry.check_integrity()


def test_names_with_one_digest_share_it():
    async def scenario(registry, loader):
        await registry.load("a", "d1")
        await registry.load("b", "d1")
        await registry.unload("a", wait_seconds=5)
        assert loader.held == {"d1"}
        await registry.unload("b", wait_seconds=5)
        assert loader.held == set()
        assert loader.num_unloads == 1

    run(scenario)


def test_caller_that_goes_away_leaves_no_orphan_in_the_engine():
    async def scenario(registry, loader):
        loader.gate = asyncio.Event()
        loading = asyncio.create_task(registry.load("math", "d1"))
        await settle()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        loader.gate.set()
        await settle()
        assert loader.held == {"d1"}
        assert registry.get("math").digest == "d1"

    run(scenario)


def test_unload_that_the_engine_refuses_is_told_and_can_be_tried_again():
    class Loader(RecordingLoader):
        async def _turn(self):
            await asyncio.sleep(0)

    async def scenario():
        await registry.load("math", "d1")
        loader.refuses_unload = True
        with pytest.raises(RuntimeError, match="engine says no"):
            await registry.unload("math", wait_seconds=5)
        assert registry.get("math").state is AdapterState.FAILED
        assert not registry.has("math")
        loader.refuses_unload = False
        await registry.unload("math", wait_seconds=5)
        assert registry.entries() == []
        assert loader.held == set()

    loader = Loader()
    registry = AdapterRegistry(loader)
    asyncio.run(scenario())
    registry.check_integrity()


@pytest.mark.parametrize("text", ["math", "a", "A.b-c_9", "0", "x" * 128])
def test_names_that_are_taken(text):
    assert is_adapter_name(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "-x", "a/b", "a:b", "a@1", "a b", "a\n", "a\0", "é", "x" * 129, "../x", "a\\b"],
)
def test_names_that_are_refused(text):
    assert not is_adapter_name(text)
    with pytest.raises(ValueError, match="adapter name"):
        asyncio.run(AdapterRegistry(RecordingLoader()).load(text, "d1"))


NAMES = ("a", "b", "c")
DIGESTS = ("d1", "d2", "d3")


class RegistryMachine(RuleBasedStateMachine):
    """Loads, leases, releases and unloads in any order; the engine runs in between as it likes.

    The oracle knows what each open lease was promised: its digest must be held by the engine.
    """

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loader = RecordingLoader()
        self.registry = AdapterRegistry(self.loader)
        self.leases = []
        self.pending = []

    def _do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    @rule(name=st.sampled_from(NAMES), digest=st.sampled_from(DIGESTS))
    def load(self, name, digest):
        outcome = self._do(self.registry.load(name, digest))
        assert outcome.entry.digest == digest
        assert self.registry.get(name) is outcome.entry

    @rule(name=st.sampled_from(NAMES), digest=st.sampled_from(DIGESTS))
    def start_load(self, name, digest):
        self.pending.append(self.loop.create_task(self.registry.load(name, digest)))

    @rule(num_turns=st.integers(0, 5))
    def let_run(self, num_turns):
        async def turns():
            for _ in range(num_turns):
                await asyncio.sleep(0)

        self._do(turns())

    @rule(name=st.sampled_from(NAMES))
    def lease(self, name):
        if not self.registry.has(name):
            with pytest.raises(AdapterNotFoundError):
                self.registry.lease(name)
            return
        lease = self.registry.lease(name)
        self.leases.append((lease, lease.entry.digest))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data):
        index = data.draw(st.integers(0, len(self.leases) - 1))
        lease, _ = self.leases.pop(index)

        async def release():
            lease.release()

        self._do(release())

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name):
        async def unload():
            was_known = any(e.name == name for e in self.registry.entries())
            try:
                await self.registry.unload(name, wait_seconds=0)
            except AdapterNotFoundError:
                assert not was_known

        self._do(unload())
        assert not self.registry.has(name) or self.pending

    @invariant()
    def promises_hold(self):
        self.registry.check_integrity()
        for lease, digest in self.leases:
            assert lease.entry.digest == digest
            assert digest in self.loader.held
        for entry in self.registry.entries():
            if entry.state is AdapterState.RESIDENT:
                assert entry.digest in self.loader.held

    def teardown(self):
        async def finish():
            for lease, _ in self.leases:
                lease.release()
            await asyncio.gather(*self.pending)
            for name in NAMES:
                if self.registry.has(name):
                    await self.registry.unload(name, wait_seconds=5)
            await settle()

        try:
            self._do(finish())
        finally:
            self.loop.close()
        assert self.registry.entries() == []
        assert self.loader.held == set()


RegistryMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
test_registry_state_machine = RegistryMachine.TestCase
