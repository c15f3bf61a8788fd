"""One digest, as far as the engine's host tier is concerned.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from shadow_runtime.registry.entry import Level
from shadow_runtime.types import AdapterManifest, AdapterName


class Place(StrEnum):
    """Where a digest is in the engine. All but ABSENT take up room.

    ABSENT ──(room found)──> LOADING ──> HELD ──(unload begins)──> LEAVING ──> ABSENT
    """

    ABSENT = "ABSENT"
    LOADING = "LOADING"
    HELD = "HELD"
    LEAVING = "LEAVING"


@dataclass(slots=True, eq=False)
class Holding:
    """What the host tier knows about one digest.

    Attributes:
        manifest: what is loaded; `path` is where this server's store had it at the last load.
        place: see `Place`.
        level: as of the last call or look.
        num_bytes: host memory that it takes.
        load_seconds: how long its last load took; what evicting it costs.
        num_leases: requests that hold an entry with this digest.
        num_holds: publishes under way that want it to stay until they end.
        pinned_by: names that pin it.
        is_engine_pinned: the engine was told.
        load: the task that loads it, None when nothing does.
        num_waiting: who waits for the load.
        num_patient: who of them waits for room, too.
        stuck: set while the load waits for room.
        failure: why the last load failed, None after one that did not.
        failed_at: when, monotonic seconds.
        turn: engine calls of one digest take turns.
    """

    manifest: AdapterManifest
    place: Place = Place.ABSENT
    level: Level = "disk"
    num_bytes: int = 0
    load_seconds: float = 0.0
    num_leases: int = 0
    num_holds: int = 0
    pinned_by: set[AdapterName] = field(default_factory=set)
    is_engine_pinned: bool = False
    load: asyncio.Task[None] | None = None
    num_waiting: int = 0
    num_patient: int = 0
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    failed_at: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def digest(self) -> str:
        """The adapter's identity."""
        return self.manifest.digest

    @property
    def is_held(self) -> bool:
        """Whether the engine can serve it now."""
        return self.place is Place.HELD

    @property
    def is_used(self) -> bool:
        """Whether somebody relies on its staying where it is."""
        return bool(self.num_leases or self.num_holds or self.pinned_by)

    @property
    def is_evictable(self) -> bool:
        """Whether it may be asked to leave; not before those who waited for its load have had a turn."""
        is_awaited = self.load is not None or self.num_waiting
        return self.is_held and not (self.is_used or is_awaited)

    @property
    def is_forgettable(self) -> bool:
        """Whether nothing would be lost with it."""
        is_busy = self.load is not None or self.num_waiting or self.turn.locked()
        return self.place is Place.ABSENT and not (self.is_used or is_busy or self.failure)


class Holdings:
    """The digests about which there is anything to know; all others are on disk and unused."""

    def __init__(self) -> None:
        self._by_digest: dict[str, Holding] = {}

    def all(self) -> list[Holding]:
        """Return all of them."""
        return list(self._by_digest.values())

    def items(self) -> list[tuple[str, Holding]]:
        """Return all of them with their digests."""
        return list(self._by_digest.items())

    def find(self, digest: str) -> Holding | None:
        """Return what is known about a digest."""
        return self._by_digest.get(digest)

    def get(self, digest: str) -> Holding:
        """Return what is known about a digest that is used; raises KeyError."""
        return self._by_digest[digest]

    def open(self, manifest: AdapterManifest) -> Holding:
        """Return what is known about a digest, a blank page at first."""
        holding = self._by_digest.get(manifest.digest)
        if holding is None:
            holding = self._by_digest[manifest.digest] = Holding(manifest)
        return holding

    def forget_if_idle(self, holding: Holding) -> None:
        """Forget a digest about which nothing is left to know."""
        if holding.is_forgettable:
            self._by_digest.pop(holding.digest, None)

    @asynccontextmanager
    async def turn(self, digest: str) -> AsyncIterator[Holding | None]:
        """Wait for a digest's turn to call the engine and keep it for the block; None when nothing is known of it."""
        holding = self._by_digest.get(digest)
        if holding is None:
            yield None
            return
        try:
            async with holding.turn:
                yield holding
        finally:
            self.forget_if_idle(holding)
