"""The values of the registry and the two things it asks of an engine.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from shadow_runtime.catalog.record import VersionRecord
from shadow_runtime.store import CanonicalTarget
from shadow_runtime.types import AdapterManifest, AdapterName, ValidationReport

Level = Literal["gpu", "host", "disk"]
LoadSource = Literal["store", "publish"]
"""Why an adapter was loaded: a request, a pin or another server's publish needed it; or it was being published."""

EvictReason = Literal["capacity", "superseded", "deleted"]
"""Why an adapter lost a place: another one needed its host memory; a new version answers, so its slot is free again;
or no name has it any more."""


class AdapterState(StrEnum):
    """Life of one version of a name in this server; a retired one is no longer in the registry.

    REGISTERED: acknowledged, and its bytes are not in this server's store (yet). LOADING: on its way into the engine.
    RESIDENT: answers; `AdapterEntry.level` says from how near. DRAINING: superseded or deleted, and finishes the
    requests that hold it. FAILED: the engine could not load it; `AdapterEntry.failure` says why, a request tries again.
    """

    REGISTERED = "REGISTERED"
    LOADING = "LOADING"
    RESIDENT = "RESIDENT"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


class AdapterLoader(Protocol):
    """An engine, as far as the registry needs it. It keys adapters by digest.

    Calls of one digest are never concurrent; calls of different digests may be.
    """

    async def load(self, manifest: AdapterManifest) -> None:
        """Hold the adapter at `manifest.path` in the engine's host memory; free when it is held already.

        Reading never blocks the engine's steps. Raises ShadowError when it cannot be held; nothing is changed then.
        """
        ...

    async def prefetch(self, digest: str) -> bool:
        """Copy a held adapter into a free device slot, off the step path; False when no slot is free."""
        ...

    async def release_slot(self, digest: str) -> None:
        """Free the device slot of a held adapter; it stays in host memory."""
        ...

    async def unload(self, digest: str) -> None:
        """Free slot and host memory of a digest; no request uses it any more. Unknown digests are ignored."""
        ...

    async def pin(self, digest: str) -> None:
        """Keep a held adapter in its device slot; raises CapacityError when the engine's pins are used up."""
        ...

    async def unpin(self, digest: str) -> None:
        """Undo `pin`; unknown digests are ignored."""
        ...

    async def levels(self) -> Mapping[str, Level]:
        """Return the level (`gpu` or `host`) of every held digest."""
        ...

    def host_bytes(self, manifest: AdapterManifest) -> int:
        """Return the host memory that holding the adapter takes, over all workers of this host."""
        ...


class Validator(Protocol):
    """Untrusted bytes to a manifest, in a process of its own with bounded memory and time."""

    async def validate(
        self,
        path: str,
        backbone_config: str | None = None,
        canonical: CanonicalTarget | None = None,
    ) -> AdapterManifest:
        """Return the manifest of the adapter at `path`; raises AdapterError or AdapterNotFoundError.

        Args:
            path: directory of the adapter.
            backbone_config: file of an explicit backbone's config from the operator.
            canonical: file to write the canonical adapter to where that is of use to the engine.
        """
        ...

    async def report(self, path: str, backbone_config: str | None = None) -> ValidationReport:
        """Return everything about the adapter at `path`; a bad one is reported, not raised."""
        ...


Progress = Callable[[str, Mapping[str, Any]], None]
"""Told what a publish has reached: (`reading` | `validated` | `registered` | `loading` | `resident`, details).

Details: `reading` has num_bytes and total_bytes; `validated` digest; `registered` version. Called on any thread.
"""


class RegistryEvents(Protocol):
    """Told what the registry does, on the event loop's thread; must return at once and never raise."""

    def on_load(self, seconds: float, source: LoadSource, result: str) -> None:
        """A load by the engine ended after `seconds`; `result` is `ok` or an error's code."""
        ...

    def on_evict(self, reason: EvictReason) -> None:
        """An adapter lost its host memory (`capacity`, `deleted`) or its device slot (`superseded`)."""
        ...

    def on_wait(self, seconds: float) -> None:
        """A request whose adapter was not in the engine waited `seconds` for it, in vain or not."""
        ...


class NoEvents:
    """Nobody listens."""

    def on_load(self, seconds: float, source: LoadSource, result: str) -> None:
        """See `RegistryEvents`."""

    def on_evict(self, reason: EvictReason) -> None:
        """See `RegistryEvents`."""

    def on_wait(self, seconds: float) -> None:
        """See `RegistryEvents`."""


@dataclass(slots=True, eq=False)
class AdapterEntry:
    """One version of one name, as long as requests or the catalog know it. Only the registry writes to it.

    Attributes:
        record: its row in the catalog.
        manifest: what it is; `path` is this server's store path.
        state: see `AdapterState`.
        level: nearest place that holds its bytes, as of the registry's last look.
        num_leases: requests that hold the entry now.
        failure: why it could not be loaded, for FAILED.
        settled: set when a DRAINING entry has left.
    """

    record: VersionRecord
    manifest: AdapterManifest
    state: AdapterState = AdapterState.REGISTERED
    level: Level = "disk"
    num_leases: int = 0
    failure: Exception | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> AdapterName:
        """Tenant and short name; `str()` gives `tenant/name`."""
        return self.record.name

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.record.version

    @property
    def digest(self) -> str:
        """The adapter's identity, `sha256:<64 hex digits>`."""
        return self.record.digest

    @property
    def key(self) -> str:
        """`tenant/name@version`: what the engine's handlers look a request's model up by."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """What a publish or rollback did.

    Attributes:
        entry: the entry that the name is bound to now.
        is_new: False when the name already had these bytes.
        replaced: the entry that the name was bound to before, draining if requests hold it; None without one.
    """

    entry: AdapterEntry
    is_new: bool
    replaced: AdapterEntry | None = None


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """Fixed at start.

    Attributes:
        max_host_adapters: digests that the engine holds in host memory at once, resident ones included.
        max_host_bytes: host memory that they may take together; None bounds by number alone.
        adapter_wait_seconds: how long a request waits for an adapter that is registered but not resident.
        publish_wait_seconds: how long a publish, rollback or pin waits for the engine to load the adapter.
        max_concurrent_loads: digests that are read at once.
        poll_seconds: how often other servers' changes are looked for.
        retry_failed_seconds: how soon after a failed load a request may try again.
        max_versions: how many of the newest versions of each name are kept; None keeps all. 2 or more.
        collect_after_seconds: how long bytes that no version names stay in the store, for other servers' requests.
    """

    max_host_adapters: int = 256
    max_host_bytes: int | None = None
    adapter_wait_seconds: float = 30.0
    publish_wait_seconds: float = 120.0
    max_concurrent_loads: int = 2
    poll_seconds: float = 0.5
    retry_failed_seconds: float = 1.0
    max_versions: int | None = None
    collect_after_seconds: float = 60.0
