"""The registry against a model of what it must do, under arbitrary orders of events.

The registry runs on a real catalog (SQLite) and a real store; the engine is fake, with real slot accounting. The model
is a dict: it knows of every name which digest each of its versions has, and of every request what it was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fake_runtime import (
    BASE_FINGERPRINT,
    BrittleCatalog,
    FakeLoader,
    RegistryWorld,
    digest_of,
    fake_manifest,
    full_name,
    stage,
    turns,
    until,
)
from shadow_runtime.catalog import ArtifactRecord
from shadow_runtime.errors import (
    AdapterFailedError,
    AdapterNotFoundError,
    AdapterTensorError,
    CapacityError,
    CatalogError,
    DigestMismatchError,
)
from shadow_runtime.registry import Lease, open_catalog
from shadow_runtime.types import AdapterName

T = TypeVar("T")

NAMES = [full_name("a"), full_name("b"), full_name("c", "acme")]
TEXTS = [f"text {number}" for number in range(6)]
MAX_HELD, NUM_SLOTS, MAX_PINNED = 2, 2, 1

HANG_SECONDS = 10.0

names = st.sampled_from(NAMES)
texts = st.sampled_from(TEXTS)
# Which of several: what there is to choose from depends on timing, and hypothesis must not see that.
choices = st.integers(0, 59)
# A crash ends all requests, so that one in every few steps would leave no time for anything else.
rarely = st.sampled_from([False, False, False, True])


@dataclass
class NameModel:
    """What a name is, by the model: digest of each version, the pin. `first` counts over deletions."""

    digests: dict[int, str] = field(default_factory=dict)
    num_versions: int = 0
    is_pinned: bool = False

    @property
    def current(self) -> str | None:
        """The digest that answers, None for a name that does not."""
        return self.digests[max(self.digests)] if self.digests else None

    def bind(self, digest: str) -> bool:
        """Bind the next version, unless the name has that digest; returns whether it was bound."""
        if self.current == digest:
            return False
        self.num_versions += 1
        self.digests[self.num_versions] = digest
        return True

    def rollback_target(self) -> str | None:
        """The newest earlier digest that differs from the current one."""
        earlier = sorted(self.digests.items(), reverse=True)
        return next((d for _, d in earlier if d != self.current), None)

    def copy(self) -> NameModel:
        """Return an independent copy."""
        return NameModel(dict(self.digests), self.num_versions, self.is_pinned)


@dataclass(eq=False)
class Request:
    """A request: what it was promised when it began, and its lease once it has one."""

    name: AdapterName
    digest: str
    task: asyncio.Task[Lease]
    lease: Lease | None = None


class RegistryMachine(RuleBasedStateMachine):
    """Publishes, requests, crashes and all the rest; counts its steps in `num_steps` and kinds in `kinds`."""

    num_steps = 0
    kinds: ClassVar[Counter[str]] = Counter()
    see_seconds = 2.0

    @initialize()
    def begin(self) -> None:
        memory = Path("/dev/shm")
        self.state_dir = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        _copy_empty_catalog(self.state_dir)
        self.loop = asyncio.new_event_loop()
        self.model = {name: NameModel() for name in NAMES}
        self.requests: list[Request] = []
        self.catalog = BrittleCatalog(open_catalog(self.state_dir, BASE_FINGERPRINT))
        self.open()

    def open(self) -> None:
        self.loader = FakeLoader(NUM_SLOTS, MAX_PINNED)
        self.world = self.run(
            RegistryWorld.open(
                self.state_dir,
                self.loader,
                self.catalog,
                max_host_adapters=MAX_HELD,
                max_host_bytes=MAX_HELD * 100,
                retry_failed_seconds=0.0,
                poll_seconds=0.01,
                collect_after_seconds=0.5,
                adapter_wait_seconds=30.0,
                publish_wait_seconds=5.0,
                max_concurrent_loads=8,
            )
        )
        self.registry = self.world.registry
        self.loader.in_use = lambda digest: any(
            r.lease is not None and r.digest == digest for r in self.requests
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the loop run until `work` is done; what hangs is a TimeoutError."""
        return self.loop.run_until_complete(asyncio.wait_for(work, HANG_SECONDS))

    def note(self, kind: str) -> None:
        type(self).num_steps += 1
        type(self).kinds[kind] += 1

    # Changes ---------------------------------------------------------------------------------------------------

    @rule(name=names, text=texts, wait=st.booleans())
    def publish(self, name: AdapterName, text: str, wait: bool) -> None:
        self.note("publish")
        digest = digest_of(text)
        # Also one that is held may have to be loaded: a request that waits for room has it evicted first.
        wait = wait and digest not in self.loader.gates
        is_failing = digest in self.loader.failures
        work = self.registry.publish(name, stage(self.world.store, text), wait=wait)
        try:
            outcome = self.run(work)
        except DigestMismatchError:
            assert wait
            assert is_failing
            return
        was = self.model[name].current
        assert outcome.is_new == self.model[name].bind(digest)
        assert outcome.entry.digest == digest
        assert outcome.entry.version == self.model[name].num_versions
        assert (outcome.replaced.digest if outcome.replaced else None) == (
            was if outcome.is_new else None
        )

    @rule(name=names)
    def publish_same(self, name: AdapterName) -> None:
        text = next((t for t in TEXTS if digest_of(t) == self.model[name].current), None)
        if text is None:
            return
        self.note("publish same")
        digest = digest_of(text)
        was_held = self._is_staying(digest)
        before = [self.loader.num_calls(kind, digest) for kind in ("load", "unload")]
        staged = stage(self.world.store, text)
        outcome = self.run(self.registry.publish(name, staged, wait=False))
        assert not outcome.is_new
        num_loads, num_unloads = (self.loader.num_calls(k, digest) for k in ("load", "unload"))
        assert not was_held or num_loads - before[0] <= num_unloads - before[1]

    def _is_staying(self, digest: str) -> bool:
        """Whether the engine has a digest, and not one whose unload is on its way there."""
        return digest in self.loader.held and self.registry._tier.is_held(digest)

    @rule(name=names, text=texts)
    def publish_broken(self, name: AdapterName, text: str) -> None:
        self.note("publish broken")
        with pytest.raises(AdapterTensorError):
            self.run(self.registry.publish(name, stage(self.world.store, f"{text} broken")))

    @rule(name=names, text=texts, call=st.sampled_from(["publish", "changes_since"]))
    def publish_without_database(self, name: AdapterName, text: str, call: str) -> None:
        self.note("publish without database")
        staged = stage(self.world.store, text)
        self.catalog.fails.add(call)
        with pytest.raises(CatalogError):
            self.run(self.registry.publish(name, staged, wait=False))
        self.catalog.fails.clear()

    @rule(name=names)
    def rollback(self, name: AdapterName) -> None:
        target = self.model[name].rollback_target()
        if target is None:
            with pytest.raises(AdapterNotFoundError):
                self.run(self.registry.rollback(name))
            return
        was_held = self._is_staying(target)
        if target in self.loader.gates or target in self.loader.failures:
            return
        self.note("rollback")
        num_loads = self.loader.num_calls("load", target)
        num_unloads = self.loader.num_calls("unload", target)
        outcome = self.run(self.registry.rollback(name))
        assert self.model[name].bind(target)
        assert outcome.entry.digest == target
        # A request that waits for room may have had it evicted before its turn came.
        if was_held and self.loader.num_calls("unload", target) == num_unloads:
            assert self.loader.num_calls("load", target) == num_loads

    @rule(name=names)
    def delete(self, name: AdapterName) -> None:
        self.note("delete")
        if self.model[name].current is None:
            with pytest.raises(AdapterNotFoundError):
                self.run(self.registry.delete(name, wait_seconds=0))
            return
        self.run(self.registry.delete(name, wait_seconds=0))
        self.model[name].digests.clear()
        self.model[name].is_pinned = False

    @rule(name=names)
    def pin(self, name: AdapterName) -> None:
        digest = self.model[name].current
        if digest is None:
            with pytest.raises(AdapterNotFoundError):
                self.run(self.registry.pin(name))
            return
        if digest in self.loader.gates:
            return
        self.note("pin")
        try:
            self.run(self.registry.pin(name))
        except (CapacityError, DigestMismatchError):
            assert self.registry.is_pinned(name) == self.model[name].is_pinned
            return
        self.model[name].is_pinned = True
        assert digest in self.loader.slots.pinned

    @rule(name=names)
    def unpin(self, name: AdapterName) -> None:
        if self.model[name].current is None:
            return
        self.note("unpin")
        self.run(self.registry.unpin(name))
        self.model[name].is_pinned = False

    @rule(name=names, text=texts)
    def another_server_publishes(self, name: AdapterName, text: str) -> None:
        self.note("another server publishes")
        digest = digest_of(text)
        stored = self.world.store.commit(stage(self.world.store, text), digest)
        artifact = ArtifactRecord(fake_manifest(digest), stored.num_bytes)
        self.catalog._catalog.publish(name, artifact, source="there")
        self.model[name].bind(digest)
        self._see(name)

    @rule(name=names)
    def another_server_deletes(self, name: AdapterName) -> None:
        if self.model[name].current is None:
            return
        self.note("another server deletes")
        self.catalog._catalog.delete(name)
        self.model[name].digests.clear()
        self.model[name].is_pinned = False
        self._see(name)

    def _see(self, name: AdapterName) -> None:
        def is_seen() -> bool:
            has = self.registry.has(name)
            return (self.registry.get(name).digest if has else None) == self.model[name].current

        self.run(until(is_seen, self.see_seconds))

    # Requests --------------------------------------------------------------------------------------------------

    @rule(name=names, is_versioned=st.booleans(), choice=choices)
    def request(self, name: AdapterName, is_versioned: bool, choice: int) -> None:
        digests = self.model[name].digests
        if not digests:
            with pytest.raises(AdapterNotFoundError):
                self.run(self.registry.lease(name, 1 if is_versioned else None))
            return
        self.note("request")
        version = sorted(digests)[choice % len(digests)] if is_versioned else None
        self._begin_request(name, version)

    @rule()
    def requests_for_all(self) -> None:
        for name, model in self.model.items():
            if model.current is not None:
                self.note("request")
                self._begin_request(name, None)

    def _begin_request(self, name: AdapterName, version: int | None) -> None:
        model = self.model[name]
        digest = model.current if version is None else model.digests[version]
        assert digest is not None
        task = self.loop.create_task(self.registry.lease(name, version))
        self.requests.append(Request(name, digest, task))
        self.run(asyncio.wait([task], timeout=0.01))
        self._answer()

    def _answer(self) -> None:
        """Take the leases of requests that have waited long enough; each answers with what it was promised."""
        for request in [r for r in self.requests if r.lease is None and r.task.done()]:
            error = request.task.exception()
            if error is not None:
                assert isinstance(error, AdapterFailedError), error
                assert request.digest in self.failed, "no load of it failed"
                self.requests.remove(request)
                continue
            request.lease = request.task.result()
            assert request.lease.entry.digest == request.digest
            assert self.loader.held[request.digest].digest == request.digest
            self.loader.use(request.digest)

    @property
    def failed(self) -> set[str]:
        """Digests whose load was made to fail in this life of the server."""
        return self.loader.__dict__.setdefault("ever_failing", set())

    @rule(choice=choices)
    def finish(self, choice: int) -> None:
        leased = [r for r in self.requests if r.lease]
        if not leased:
            return
        self.note("finish")
        request = leased[choice % len(leased)]
        self.requests.remove(request)
        self.run(_finish(request))

    @rule(choice=choices)
    def cancel(self, choice: int) -> None:
        waiting = [r for r in self.requests if not r.lease]
        if not waiting:
            return
        self.note("cancel")
        request = waiting[choice % len(waiting)]
        self.requests.remove(request)
        request.task.cancel()
        result = self.run(_results([request.task]))[0]
        assert isinstance(result, asyncio.CancelledError)

    # The engine ------------------------------------------------------------------------------------------------

    @rule(text=texts)
    def stall(self, text: str) -> None:
        self.note("stall")
        self.loader.gates.setdefault(digest_of(text), asyncio.Event())

    @rule(choice=choices)
    def go_on(self, choice: int) -> None:
        gates = sorted(self.loader.gates)
        if gates:
            self.note("go on")
            self.loader.gates.pop(gates[choice % len(gates)]).set()
            self.run(turns(30))

    @rule(text=texts)
    def fail(self, text: str) -> None:
        self.note("fail")
        self.loader.failures[digest_of(text)] = DigestMismatchError("the files changed")
        self.failed.add(digest_of(text))

    @rule()
    def heal(self) -> None:
        self.note("heal")
        self.loader.failures.clear()

    @rule(num_turns=st.integers(1, 40))
    def let_run(self, num_turns: int) -> None:
        self.note("let run")
        self.run(turns(num_turns))

    @rule()
    def come_to_rest(self) -> None:
        """Slots belong to digests that answer or are used, once nothing is under way."""
        if self.loader.gates or not self.loader.slots.resident:
            return
        self.note("come to rest")

        def is_at_rest() -> bool:
            used = {r.digest for r in self.requests} | {m.current for m in self.model.values()}
            return self.loader.slots.resident.keys() <= used

        self.run(until(is_at_rest, 2.0))

    # Crashes ---------------------------------------------------------------------------------------------------

    @rule(does_happen=rarely)
    def crash(self, does_happen: bool) -> None:
        if not does_happen:
            return
        self.note("crash")
        self._die()
        self.open()

    @rule(
        does_happen=rarely,
        name=names,
        text=texts,
        kind=st.sampled_from(["publish", "rollback", "delete"]),
        num_turns=st.integers(0, 60),
    )
    def crash_in_a_change(
        self, does_happen: bool, name: AdapterName, text: str, kind: str, num_turns: int
    ) -> None:
        if not does_happen:
            return
        self.note(f"crash in a {kind}")
        before, after = self.model[name].copy(), self.model[name].copy()
        task = self.loop.create_task(self._start(kind, name, text))
        if kind == "publish":
            after.bind(digest_of(text))
        elif kind == "delete":
            after.digests.clear()
            after.is_pinned = False
        elif after.rollback_target() is not None:
            after.bind(str(after.rollback_target()))
        self.run(turns(num_turns))
        was_acknowledged = task.done() and not task.cancelled() and task.exception() is None
        self._die()
        self.open()
        has = self.registry.has(name)
        now = self.registry.get(name).digest if has else None
        assert now in {before.current, after.current}
        assert not was_acknowledged or now == after.current
        has_happened = now == after.current and now != before.current
        self.model[name] = after if has_happened else before

    def _start(self, kind: str, name: AdapterName, text: str) -> Coroutine[Any, Any, Any]:
        if kind == "publish":
            return self.registry.publish(name, stage(self.world.store, text))
        if kind == "rollback":
            return self.registry.rollback(name)
        return self.registry.delete(name, wait_seconds=5)

    def _die(self) -> None:
        """Stop the server where it stands: nothing is closed, the engine is gone with it."""
        self.requests.clear()
        for _ in range(2):  # an ending task may begin another one
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.run(_results(tasks))
        # What was on its way to the database arrives or not; here it arrives before the next life begins.
        self.registry._threads._threads.shutdown(wait=True)

    # What must hold --------------------------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "registry"):
            return
        self.run(turns(2))
        self._answer()
        self.registry.check_integrity()
        self._check_engine()
        self._check_names()
        self._check_leases()

    def _check_engine(self) -> None:
        self.loader.slots.check_integrity()
        assert not self.loader.violations
        assert len(self.loader.slots.resident) <= NUM_SLOTS
        assert self.loader.peak_held <= MAX_HELD
        for request in self.requests:
            if request.lease is not None:
                assert request.digest in self.loader.held

    def _check_names(self) -> None:
        for name, model in self.model.items():
            assert self.registry.has(name) == (model.current is not None)
            assert self.registry.is_pinned(name) == model.is_pinned
            if model.current is not None:
                assert self.registry.get(name).digest == model.current
                versions = {v.version: v.digest for v in self.registry.versions(name)}
                assert versions == model.digests

    def _check_leases(self) -> None:
        promised = Counter(r.digest for r in self.requests if r.lease or not r.task.done())
        counted: Counter[str] = Counter()
        for entry in self.registry.entries():
            assert entry.num_leases >= 0
            counted[entry.digest] += entry.num_leases
        assert +counted == promised

    def teardown(self) -> None:
        # Last in, first out; a step that fails does not keep the others from being done.
        with contextlib.ExitStack() as closing:
            if hasattr(self, "state_dir"):
                closing.callback(shutil.rmtree, self.state_dir)
            if hasattr(self, "loop"):
                closing.callback(self.loop.close)
                closing.callback(lambda: self.run(self.loop.shutdown_default_executor()))
            if hasattr(self, "catalog"):
                closing.callback(self.catalog.close)
            if hasattr(self, "registry"):
                closing.callback(self._die)
                self._drain()

    def _drain(self) -> None:
        for gate in self.loader.gates.values():
            gate.set()
        self.loader.gates.clear()
        self.loader.failures.clear()
        # Pins and leases may take every place that those who still wait need.
        for name in NAMES:
            self.unpin(name)
        requests, self.requests = self.requests, []
        self.run(_finish_all(requests))
        for name, model in self.model.items():
            if model.current is not None:
                assert self.run(self.registry.delete(name, wait_seconds=5)).settled.is_set()
        self.run(until(lambda: not self.loader.held and not self.registry.entries()))
        self.registry.check_integrity()
        assert self.loader.slots.num_free == NUM_SLOTS
        assert not self.loader.violations


async def _finish(request: Request) -> None:
    lease = request.lease or await asyncio.wait_for(asyncio.shield(request.task), 5)
    lease.release()
    lease.release()


async def _finish_all(requests: list[Request]) -> None:
    await asyncio.gather(*(_finish(request) for request in requests))


async def _results(tasks: Collection[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


_templates: list[Path] = []


def _copy_empty_catalog(state_dir: Path) -> None:
    """Make a catalog without the half second that its migrations take."""
    if not _templates:
        template = Path(tempfile.mkdtemp())
        open_catalog(template, BASE_FINGERPRINT).close()
        _templates.append(template)
    shutil.copytree(_templates[0], state_dir, dirs_exist_ok=True)


def quiet(action: Callable[[], None]) -> None:
    """Run something without the log lines of failures that are wanted."""
    logging.disable(logging.CRITICAL)
    try:
        action()
    finally:
        logging.disable(logging.NOTSET)
