"""The values of the registry and the two things it asks of an engine.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shadow_runtime.types import AdapterManifest


class AdapterState(StrEnum):
    """Life of an entry; a retired entry is no longer in the registry.

    RESIDENT answers requests. DRAINING finishes the requests that hold it and accepts none. FAILED
    could not be removed from the engine; unloading its name tries again.
    """

    RESIDENT = "RESIDENT"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


class AdapterHandle(Protocol):
    """What an engine returns for a loaded adapter; everything else in it is the engine's own."""

    @property
    def name(self) -> str:
        """Name that the adapter was loaded under."""
        ...

    @property
    def manifest(self) -> AdapterManifest:
        """What the engine found out about the adapter; its digest is the identity."""
        ...


class AdapterLoader(Protocol):
    """An engine, as far as the registry needs it. It keys adapters by digest."""

    async def load(self, name: str, path: str, backbone_config: str | None = None) -> AdapterHandle:
        """Validate the adapter at `path` and make it usable; bytes already loaded are free.

        Raises:
            ShadowError: the adapter cannot be served; nothing is changed then.
        """
        ...

    async def unload(self, handle: AdapterHandle) -> None:
        """Free what the handle's digest holds in the engine."""
        ...


@dataclass(slots=True, eq=False)
class AdapterEntry:
    """One name bound to one digest, from publication to retirement. Only the registry writes to it.

    Attributes:
        name: adapter name.
        handle: the engine's handle.
        generation: unique and growing over the registry's life.
        created_at_unix: seconds since the epoch at publication.
        state: see `AdapterState`.
        num_leases: requests that hold the entry now.
        failure: why the engine could not remove it, for FAILED.
        settled: set when the entry is retired or FAILED.
    """

    name: str
    handle: AdapterHandle
    generation: int
    created_at_unix: int
    state: AdapterState = AdapterState.RESIDENT
    num_leases: int = 0
    failure: Exception | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def digest(self) -> str:
        """The adapter's identity, `sha256:<64 hex digits>`."""
        return self.handle.manifest.digest

    @property
    def key(self) -> str:
        """A key for this very entry, that no adapter name can equal."""
        return f"{self.name}@{self.generation}"


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """What a load did.

    Attributes:
        entry: the entry that the name is bound to now.
        is_new: False when the name already had these bytes.
        replaced: the entry that the name was bound to before, now draining; None without one.
    """

    entry: AdapterEntry
    is_new: bool
    replaced: AdapterEntry | None = None
