"""An engine and a validator without a model, for tests of the registry and of what stands on it.

An adapter is a directory with one `adapter_config.json`; its text is its identity. Device slots are counted by the
runtime's own `SlotPool`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sample_spec import SAMPLE_SPEC
from shadow_runtime.catalog import Catalog
from shadow_runtime.errors import (
    AdapterNotFoundError,
    AdapterTensorError,
    CapacityError,
    CatalogError,
)
from shadow_runtime.registry import (
    AdapterRegistry,
    AdapterState,
    Level,
    PublishOutcome,
    RegistrySettings,
    open_catalog,
)
from shadow_runtime.slots.pool import SlotPool
from shadow_runtime.store import ArtifactStore, CanonicalTarget, StagedArtifact
from shadow_runtime.types import AdapterManifest, AdapterName, ValidationReport

ADAPTER_FILE = "adapter_config.json"
BASE_FINGERPRINT = "sha256:" + "0" * 64
HOST_BYTES = 100
"""Host memory of a fake adapter whose text has no `bytes=<number>`."""


def digest_of(text: str) -> str:
    """Return the digest of the fake adapter with this text."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def full_name(name: str, tenant: str = "default") -> AdapterName:
    """Return a name of the default tenant, or of another."""
    return AdapterName(tenant, name)


def stage(store: ArtifactStore, text: str) -> StagedArtifact:
    """Stage a fake adapter, as an upload would."""
    session = store.begin_upload()
    with session.open(ADAPTER_FILE) as file:
        file.write(text.encode())
    return session.finish(f"fake {text}")


def fake_manifest(
    digest: str, path: str = "/nowhere", scale: float = HOST_BYTES
) -> AdapterManifest:
    """Return a manifest that only a fake engine understands: `scale` is its host memory."""
    return AdapterManifest(
        digest=digest,
        format="peft",
        path=path,
        backbone_config=None,
        injection_rank=8,
        gate_size=8,
        scale=scale,
        activation="gelu",
        has_norm=False,
        has_update_bias=True,
        injects=(True,),
        updates=(False,),
        backbone=SAMPLE_SPEC,
        num_parameters=1,
        tensor_bytes=int(scale),
    )


class FakeValidator:
    """Reads fake adapters; the word `broken` in one makes it invalid.

    Attributes:
        gate: holds every validation back until it is set; None lets them through.
    """

    def __init__(self) -> None:
        self.gate: asyncio.Event | None = None

    async def validate(
        self,
        path: str,
        backbone_config: str | None = None,
        canonical: CanonicalTarget | None = None,
    ) -> AdapterManifest:
        """See `Validator`."""
        if self.gate is not None:
            await self.gate.wait()
        file = Path(path) / ADAPTER_FILE
        if not file.is_file():
            raise AdapterNotFoundError(f"no adapter at {path}")
        text = file.read_text()
        if "broken" in text:
            raise AdapterTensorError("a tensor holds NaN")
        _, _, num_bytes = text.partition("bytes=")
        return fake_manifest(digest_of(text), path, float(num_bytes or HOST_BYTES))

    async def report(self, path: str, backbone_config: str | None = None) -> ValidationReport:
        """See `Validator`."""
        try:
            manifest = await self.validate(path, backbone_config)
        except AdapterTensorError as error:
            return ValidationReport(
                None, error.code, str(error), (), None, None, BASE_FINGERPRINT, 0
            )
        return ValidationReport(manifest, None, None, (), "fake", 1, BASE_FINGERPRINT, 0)


class FakeLoader:
    """An engine's host memory and device slots, and what goes wrong there.

    Attributes:
        held: manifest of every digest in host memory.
        slots: the device slots.
        calls: (operation, digest) in the order of their beginning.
        failures: error that loading a digest raises, until it is taken out.
        gates: a load of the digest waits until its event is set; without an event it goes through.
        refused: operations that raise RuntimeError.
        in_use: tells whether requests use a digest now; unloading such a one is an error of the caller.
        violations: what the caller did against the protocol; each is raised, too.
    """

    def __init__(
        self, num_slots: int = 4, max_pinned: int = 1, max_held: int | None = None
    ) -> None:
        self.held: dict[str, AdapterManifest] = {}
        self.slots = SlotPool(0, num_slots, max_pinned)
        self.calls: list[tuple[str, str]] = []
        self.failures: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.refused: set[str] = set()
        self.in_use: Callable[[str], bool] = lambda digest: False
        self.violations: list[str] = []
        self.max_concurrent_loads = 0
        self.peak_held = 0
        self._max_held = max_held
        self._running: Counter[str] = Counter()
        self._num_loads = 0

    def num_calls(self, operation: str, digest: str | None = None) -> int:
        """Return how often an operation was begun, for one digest or for all."""
        return sum(o == operation and digest in (None, d) for o, d in self.calls)

    async def load(self, manifest: AdapterManifest) -> None:
        """See `AdapterLoader`."""
        digest = manifest.digest
        self._num_loads += 1
        self.max_concurrent_loads = max(self.max_concurrent_loads, self._num_loads)
        try:
            async with self._Call(self, "load", digest):
                if digest in self.gates:
                    await self.gates[digest].wait()
                if digest in self.failures:
                    raise self.failures[digest]
                if digest_of((Path(manifest.path) / ADAPTER_FILE).read_text()) != digest:
                    raise RuntimeError(f"the files of {digest} are others")
                if self._max_held is not None and len(self.held) >= self._max_held:
                    raise CapacityError("the engine's host memory is full")
                self.held[digest] = manifest
                self.peak_held = max(self.peak_held, len(self.held))
        finally:
            self._num_loads -= 1

    async def prefetch(self, digest: str) -> bool:
        """See `AdapterLoader`."""
        async with self._Call(self, "prefetch", digest):
            self._check_held(digest)
            if self.slots.find(digest) is None and not self.slots.num_free:
                return False
            self.use(digest)
            return True

    def use(self, digest: str) -> int:
        """Run a step with a held adapter; returns its slot."""
        self._check_held(digest)
        return self.slots.ensure(digest, (), lambda slot: None)

    async def release_slot(self, digest: str) -> None:
        """See `AdapterLoader`."""
        async with self._Call(self, "release_slot", digest):
            self._check_held(digest)
            self.slots.release(digest)

    async def unload(self, digest: str) -> None:
        """See `AdapterLoader`."""
        async with self._Call(self, "unload", digest):
            if self.in_use(digest):
                self._complain(f"{digest} is unloaded under its requests")
            if digest in self.slots.pinned:
                self._complain(f"{digest} is unloaded while it is pinned")
            self.slots.release(digest)
            self.held.pop(digest, None)

    async def pin(self, digest: str) -> None:
        """See `AdapterLoader`."""
        async with self._Call(self, "pin", digest):
            self.slots.check_pin(digest)
            self.use(digest)
            self.slots.pin(digest)

    async def unpin(self, digest: str) -> None:
        """See `AdapterLoader`."""
        async with self._Call(self, "unpin", digest):
            self.slots.unpin(digest)

    async def levels(self) -> Mapping[str, Level]:
        """See `AdapterLoader`."""
        await asyncio.sleep(0)
        return {d: "host" if self.slots.find(d) is None else "gpu" for d in self.held}

    def host_bytes(self, manifest: AdapterManifest) -> int:
        """See `AdapterLoader`."""
        return int(manifest.scale)

    def _check_held(self, digest: str) -> None:
        if digest not in self.held:
            self._complain(f"{digest} is used and not held")

    def _complain(self, text: str) -> None:
        self.violations.append(text)
        raise AssertionError(text)

    class _Call:
        def __init__(self, loader: FakeLoader, operation: str, digest: str) -> None:
            self.loader, self.operation, self.digest = loader, operation, digest

        async def __aenter__(self) -> None:
            self.loader.calls.append((self.operation, self.digest))
            self.loader._running[self.digest] += 1
            if self.loader._running[self.digest] > 1:
                self.loader._complain(f"two engine calls of {self.digest} at once")
            for _ in range(2):
                await asyncio.sleep(0)
            if self.operation in self.loader.refused:
                self.loader._running[self.digest] -= 1
                raise RuntimeError(f"engine refuses {self.operation}")

        async def __aexit__(self, *_: Any) -> None:
            self.loader._running[self.digest] -= 1


class BrittleCatalog:
    """A catalog whose database goes away and comes back.

    Attributes:
        is_down: every call raises CatalogError.
        fails: names of calls that raise CatalogError.
        calls: names of all calls.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.is_down = False
        self.fails: set[str] = set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._catalog, name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if self.is_down or name in self.fails:
                raise CatalogError("the database does not answer")
            return method(*args, **options)

        return call


class RecordedEvents:
    """Keeps what a registry tells its observer."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, str]] = []
        self.evictions: list[str] = []
        self.waits: list[float] = []

    def on_load(self, seconds: float, source: str, result: str) -> None:
        """See `RegistryEvents`."""
        self.loads.append((source, result))

    def on_evict(self, reason: str) -> None:
        """See `RegistryEvents`."""
        self.evictions.append(reason)

    def on_wait(self, seconds: float) -> None:
        """See `RegistryEvents`."""
        self.waits.append(seconds)


@dataclasses.dataclass
class RegistryWorld:
    """A registry on a real catalog and store with a fake engine, and what a test wants to know of them."""

    registry: AdapterRegistry
    loader: FakeLoader
    validator: FakeValidator
    catalog: BrittleCatalog
    store: ArtifactStore
    events: RecordedEvents

    @classmethod
    async def open(
        cls,
        state_dir: Path,
        loader: FakeLoader | None = None,
        catalog: BrittleCatalog | None = None,
        **settings: Any,
    ) -> RegistryWorld:
        """Open a registry; two worlds of one directory are two servers that share catalog and store."""
        chosen = RegistrySettings(**{"poll_seconds": 0.02, "adapter_wait_seconds": 5.0, **settings})
        loader = loader or FakeLoader()
        if catalog is None:
            opened = await asyncio.to_thread(open_catalog, state_dir, BASE_FINGERPRINT)
            catalog = BrittleCatalog(opened)
        store = ArtifactStore(state_dir / "store")
        validator = FakeValidator()
        registry = AdapterRegistry(loader, catalog, store, validator, chosen)  # type: ignore[arg-type]
        world = cls(registry, loader, validator, catalog, store, RecordedEvents())
        registry.events = world.events
        loader.in_use = lambda d: any(
            e.digest == d and e.num_leases and e.state is not AdapterState.LOADING
            for e in registry.entries()
        )
        await registry.start()
        return world

    async def publish(self, name: str, text: str, **options: Any) -> PublishOutcome:
        """Publish a fake adapter."""
        staged = await asyncio.to_thread(stage, self.store, text)
        return await self.registry.publish(full_name(name), staged, **options)

    def staged_names(self) -> list[str]:
        """Return what lies in the store's staging directory."""
        return [path.name for path in (self.store.root / "staging").iterdir()]


async def until(condition: Callable[[], bool], within_seconds: float = 20.0) -> None:
    """Wait for something that happens by itself; raises TimeoutError when it does not."""
    async with asyncio.timeout(within_seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of the test
            await asyncio.sleep(0.002)


async def turns(number: int = 20) -> None:
    """Let everything run that only needs the event loop."""
    for _ in range(number):
        await asyncio.sleep(0)
