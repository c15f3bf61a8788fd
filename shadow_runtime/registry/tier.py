"""The engine's host tier: which digests it holds, who relies on them, and who makes room.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import contextmanager

from shadow_runtime.errors import (
    AdapterFailedError,
    AdapterLoadingError,
    CapacityError,
    ShadowError,
)
from shadow_runtime.registry.background import Background
from shadow_runtime.registry.entry import (
    AdapterLoader,
    EvictReason,
    LoadSource,
    NoEvents,
    RegistryEvents,
    RegistrySettings,
)
from shadow_runtime.registry.gate import LoadGate
from shadow_runtime.registry.holding import Holding, Holdings, Place
from shadow_runtime.registry.room import HostRoom
from shadow_runtime.types import AdapterManifest, AdapterName

logger = logging.getLogger(__name__)

Locate = Callable[[AdapterManifest], Awaitable[AdapterManifest | None]]
"""Finds an adapter's bytes: its manifest with this server's path, None when they are not in the store."""


class HostTier:
    """At most `max_host_adapters` digests and `max_host_bytes` bytes in the engine's host memory.

    Invariants (`check_integrity`):
        Digests that the engine holds, takes in or lets go are within both bounds.
        Leases and holds are never negative.
        An unload begins only when nobody leases, holds or pins the digest.
        Engine calls of one digest take turns, whoever asks for them; a call that never returns stops only that digest.

    Ownership: one event loop; all fields change on it.

    Failure: a load or unload that raises leaves the digest where it was.
    """

    def __init__(
        self,
        loader: AdapterLoader,
        locate: Locate,
        settings: RegistrySettings,
        background: Background,
        on_change: Callable[[str], None],
    ) -> None:
        self.events: RegistryEvents = NoEvents()
        self._loader = loader
        self._locate = locate
        self._settings = settings
        self._background = background
        self._on_change = on_change
        self._holdings = Holdings()
        self._room = HostRoom(self._holdings, settings.max_host_adapters, settings.max_host_bytes)
        # A hung load must not use up the time of requests for others.
        self._gate = LoadGate(settings.max_concurrent_loads, settings.adapter_wait_seconds / 4)

    # Looking ---------------------------------------------------------------------------------------------------

    def find(self, digest: str) -> Holding | None:
        """Return what is known about a digest; None says: on disk, unused and without a failure."""
        return self._holdings.find(digest)

    def is_held(self, digest: str) -> bool:
        """Return whether the engine can serve the digest now."""
        holding = self._holdings.find(digest)
        return holding is not None and holding.is_held

    def present(self) -> list[str]:
        """Return the digests that the engine can serve now or is about to load."""
        return [h.digest for h in self._holdings.all() if h.is_held or h.load is not None]

    @property
    def num_host_bytes(self) -> int:
        """Host memory of what the engine holds or is about to, in bytes."""
        return self._room.num_bytes

    def find_recent_failure(self, digest: str) -> Exception | None:
        """Return why the last load failed, while it is too early for another try."""
        holding = self._holdings.find(digest)
        if holding is None or holding.failure is None:
            return None
        is_recent = time.monotonic() - holding.failed_at < self._settings.retry_failed_seconds
        return holding.failure if is_recent else None

    def forget_failure(self, digest: str) -> None:
        """Let the next request try at once: nobody can see the failure any more."""
        holding = self._holdings.find(digest)
        if holding is not None:
            holding.failure = None
            self._let_go(holding)

    # Relying on a digest ---------------------------------------------------------------------------------------

    def lease(self, manifest: AdapterManifest) -> None:
        """Count one more request for a digest, held or not."""
        holding = self._holdings.open(manifest)
        holding.num_leases += 1
        self._room.touch(holding)

    def release(self, digest: str) -> None:
        """Count one request less."""
        holding = self._holdings.get(digest)
        holding.num_leases -= 1
        self._room.touch(holding)
        self._let_go(holding)

    @contextmanager
    def hold(self, manifest: AdapterManifest) -> Iterator[None]:
        """Keep a digest for the block once it is there."""
        holding = self._holdings.open(manifest)
        holding.num_holds += 1
        try:
            yield
        finally:
            holding.num_holds -= 1
            self._let_go(holding)

    def pin(self, manifest: AdapterManifest, name: AdapterName) -> None:
        """Keep a digest for `name` until `unpin`; `sync_pin` tells the engine."""
        self._holdings.open(manifest).pinned_by.add(name)

    def unpin(self, digest: str, name: AdapterName) -> None:
        """Undo `pin`; unknown digests and names are ignored."""
        holding = self._holdings.find(digest)
        if holding is not None:
            holding.pinned_by.discard(name)
            self._let_go(holding)

    def demote(self, digest: str) -> None:
        """Let a digest leave before others: no name answers with it."""
        if self.is_held(digest):
            self._room.demote(digest)

    # Loading ---------------------------------------------------------------------------------------------------

    async def ensure(
        self, manifest: AdapterManifest, source: LoadSource, *, is_patient: bool
    ) -> None:
        """Return when the engine can serve the digest; whoever asks at once shares one load.

        Args:
            manifest: what to load.
            source: for the events.
            is_patient: wait for room when every place is leased, held or pinned; else CapacityError.

        Raises:
            CapacityError: there is no room, here or in the engine.
            AdapterFailedError: the bytes are not in the store.
            Exception: the engine's.
        """
        holding = self._holdings.open(manifest)
        with self._waiting(holding, is_patient):
            while not holding.is_held:
                if holding.load is None:
                    holding.load = self._background.spawn(self._load(holding, source))
                    self._on_change(holding.digest)  # here: the task itself begins a turn later
                await self._share(holding, holding.load, is_patient)

    async def _share(self, holding: Holding, load: asyncio.Task[None], is_patient: bool) -> None:
        """Wait for a load that goes on when this waiter goes away."""
        if is_patient:
            return await asyncio.shield(load)
        stuck = asyncio.ensure_future(holding.stuck.wait())
        try:
            await asyncio.wait({load, stuck}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stuck.cancel()
        if not load.done():
            raise self._room.full()
        return load.result()

    @contextmanager
    def _waiting(self, holding: Holding, is_patient: bool) -> Iterator[None]:
        holding.num_waiting += 1
        holding.num_patient += is_patient
        try:
            yield
        finally:
            holding.num_waiting -= 1
            holding.num_patient -= is_patient
            self._let_go(holding)

    async def _load(self, holding: Holding, source: LoadSource) -> None:
        try:
            async with holding.turn:
                # It may have stayed: an unload that was under way failed.
                if not holding.is_held:
                    await self._enter(holding, source)
                    await self._prefetch(holding)
        except (AdapterFailedError, AdapterLoadingError, CapacityError):
            raise  # of the place, the store or the asker: nothing is wrong with the adapter
        except Exception as error:
            if not holding.is_held:
                holding.failure, holding.failed_at = error, time.monotonic()
            raise
        finally:
            holding.load = None
            self._on_change(holding.digest)
            self._let_go(holding)

    async def _enter(self, holding: Holding, source: LoadSource) -> None:
        while True:
            async with self._gate.enter():
                if not holding.num_waiting:
                    raise AdapterLoadingError(f"nobody waits for {holding.digest} any more")
                await self._find_bytes(holding)
                if await self._make_room(holding):
                    return await self._call_load(holding, source)
            if not holding.num_patient:
                raise self._room.full()
            await self._wait_for_room(holding)

    async def _find_bytes(self, holding: Holding) -> None:
        found = await self._locate(holding.manifest)
        if found is None:
            raise AdapterFailedError(
                f"the bytes of {holding.digest} are not in this server's store"
            )
        holding.manifest = found
        holding.num_bytes = self._loader.host_bytes(found)
        limit = self._settings.max_host_bytes
        if limit is not None and holding.num_bytes > limit:
            raise CapacityError(
                f"the adapter takes {holding.num_bytes} bytes of host memory, of {limit} for all adapters"
            )

    async def _call_load(self, holding: Holding, source: LoadSource) -> None:
        started = time.monotonic()
        result = "internal_error"
        try:
            await self._loader.load(holding.manifest)
            result = "ok"
        except ShadowError as error:
            result = error.code
            raise
        finally:
            holding.load_seconds = time.monotonic() - started
            holding.place = Place.HELD if result == "ok" else Place.ABSENT
            self.events.on_load(holding.load_seconds, source, result)
        holding.level = "host"
        holding.failure = None
        self._room.touch(holding)
        self._on_change(holding.digest)

    # Making room -----------------------------------------------------------------------------------------------

    async def _make_room(self, holding: Holding) -> bool:
        """Reserve a place, evicting others if need be; False, and nobody evicted, when that could not be enough."""
        while not self._room.has_room(holding):
            if not self._room.can_have_room(holding):
                return False
            victim = self._room.choose_victim()
            if victim is None:
                await self._room.wait()  # those that leave already are enough
            else:
                await self._evict(victim)
        holding.place = Place.LOADING
        return True

    async def evict_one(self, among: Container[str]) -> bool:
        """Evict that one of some digests whose turn it is; False when they are all absent, leased or pinned."""
        victim = self._room.choose_victim(among)
        if victim is not None:
            await self._evict(victim)
        return victim is not None

    async def _evict(self, victim: Holding) -> None:
        async with self._holdings.turn(victim.digest):
            if victim.is_evictable:
                await self._leave(victim, "capacity")

    async def _leave(self, holding: Holding, reason: EvictReason) -> None:
        digest = holding.digest
        # First: a request that comes while the engine unloads it must wait and load it again.
        holding.place = Place.LEAVING
        self._on_change(digest)
        try:
            await self._unpin(holding)
            await self._loader.unload(digest)
        except BaseException:
            holding.place = Place.HELD
            self._room.touch(holding)  # so that the next load asks another one to leave
            self._on_change(digest)
            raise
        finally:
            self._room.signal()
        holding.place, holding.level = Place.ABSENT, "disk"
        self._room.note_left(digest)
        self.events.on_evict(reason)
        self._on_change(digest)

    async def _wait_for_room(self, holding: Holding) -> None:
        holding.stuck.set()
        try:
            await self._room.wait()
        finally:
            holding.stuck.clear()

    # Slots and pins --------------------------------------------------------------------------------------------

    async def prefetch(self, digest: str) -> None:
        """Bring a held digest into a free slot, best effort."""
        async with self._holdings.turn(digest) as holding:
            if holding is not None and holding.is_held:
                await self._prefetch(holding)

    async def _prefetch(self, holding: Holding) -> None:
        try:
            if await self._loader.prefetch(holding.digest):
                holding.level = "gpu"
        except ShadowError as error:
            # The first step that needs it copies it itself.
            logger.warning("adapter %s was not prefetched: %s", holding.digest, error)
        self._on_change(holding.digest)

    async def release_slot(self, digest: str, is_wanted: Callable[[], bool]) -> None:
        """Free the slot of a held digest that nobody uses and no name answers with."""
        async with self._holdings.turn(digest) as holding:
            if holding is None or not holding.is_held or holding.is_used or is_wanted():
                return
            await self._unpin(holding)
            await self._loader.release_slot(digest)
            holding.level = "host"
            self._room.demote(digest)
            self.events.on_evict("superseded")
            self._on_change(digest)

    async def unload(self, digest: str, is_wanted: Callable[[], bool]) -> None:
        """Free slot and host memory of a digest that nobody uses and no version has."""
        async with self._holdings.turn(digest) as holding:
            if holding is None or holding.is_used or is_wanted():
                return
            if holding.is_held:
                await self._leave(holding, "deleted")
            holding.failure = None
            self._on_change(digest)

    async def sync_pin(self, digest: str) -> None:
        """Tell the engine whether a digest is pinned; raises CapacityError when its pins are used up."""
        if not self.is_held(digest):
            return  # there is nothing to pin yet, or any more; a load may keep the turn for long
        async with self._holdings.turn(digest) as holding:
            if holding is None or not holding.is_held:
                return
            if not holding.pinned_by:
                await self._unpin(holding)
            elif not holding.is_engine_pinned:
                await self._prefetch(holding)
                await self._loader.pin(digest)
                holding.is_engine_pinned, holding.level = True, "gpu"
            self._on_change(digest)

    async def _unpin(self, holding: Holding) -> None:
        if holding.is_engine_pinned:
            await self._loader.unpin(holding.digest)
            holding.is_engine_pinned = False

    def find_unsynced_pins(self) -> list[str]:
        """Return the digests of which the engine does not know yet that they are pinned, or no more; none in vain."""
        return [
            h.digest
            for h in self._holdings.all()
            if bool(h.pinned_by) != h.is_engine_pinned
            and not (h.load or h.turn.locked())
            and self.find_recent_failure(h.digest) is None
        ]

    async def refresh_levels(self) -> None:
        """Ask the engine where every held digest is: slots change hands in every step."""
        levels = await self._loader.levels()
        for holding in self._holdings.all():
            if holding.is_held and not holding.turn.locked():
                holding.level = levels.get(holding.digest, "host")
                self._on_change(holding.digest)

    def _let_go(self, holding: Holding) -> None:
        """Forget a digest that means nothing any more, and wake those who wait for room."""
        self._holdings.forget_if_idle(holding)
        self._room.signal()

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        self._room.check_integrity()
        for digest, holding in self._holdings.items():
            if min(holding.num_leases, holding.num_holds) < 0:
                raise RuntimeError(f"{digest} has a negative number of leases or holds")
            if holding.place is Place.LOADING and holding.load is None:
                raise RuntimeError(f"{digest} has a place and nothing loads it")
            if holding.is_engine_pinned and holding.place is Place.ABSENT:
                raise RuntimeError(f"{digest} is pinned in the engine without being there")
