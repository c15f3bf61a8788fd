"""The one place that decides which adapter a new request gets, and the only writer of the catalog.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from shadow_runtime.catalog import Catalog
from shadow_runtime.catalog.record import CatalogQuota, CatalogUsage, VersionRecord
from shadow_runtime.errors import (
    AdapterFailedError,
    AdapterLoadingError,
    AdapterNotFoundError,
    CapacityError,
)
from shadow_runtime.registry.background import Background
from shadow_runtime.registry.binding import Bindings
from shadow_runtime.registry.change import AdapterChanges, PublishRequest, report_nothing
from shadow_runtime.registry.collector import Collector
from shadow_runtime.registry.entry import (
    AdapterEntry,
    AdapterLoader,
    Progress,
    PublishOutcome,
    RegistryEvents,
    RegistrySettings,
    Validator,
)
from shadow_runtime.registry.lease import Lease
from shadow_runtime.registry.live import LiveEntries
from shadow_runtime.registry.offload import Offload
from shadow_runtime.registry.replica import CatalogFollower
from shadow_runtime.registry.shelf import Shelf
from shadow_runtime.registry.tier import HostTier
from shadow_runtime.store import ArtifactStore, StagedArtifact
from shadow_runtime.types import AdapterName

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_SECONDS = 5.0
_CATALOG_THREADS = 4


class AdapterRegistry:
    """Binds names to adapters, for this server and, through the catalog, for all servers of one database.

    Invariants (`check_integrity`): those of `Bindings`, `LiveEntries` and `HostTier`. Together they say: a request
    gets the version that its name had when it asked, and the engine holds that version's digest until it has ended.

    Ownership: one event loop, which is never blocked: database, disk and engine are awaited. Changes of one name take
    turns, those of different names do not wait for each other. It closes the catalog that it was given.

    Failure: a change that raises has changed nothing that a request can see. With CatalogError it may still have been
    committed, when the connection was lost in that moment; the next poll shows it then.
    """

    def __init__(
        self,
        loader: AdapterLoader,
        catalog: Catalog,
        store: ArtifactStore,
        validator: Validator,
        settings: RegistrySettings | None = None,
    ) -> None:
        self.store = store
        self.validator = validator
        self.settings = settings or RegistrySettings()
        self._catalog = catalog
        # Its own threads: a database that hangs must not hold up those that read adapters.
        self._threads = Offload("shadow-catalog", _CATALOG_THREADS)
        self._background = Background()
        self._under_way = Background()
        self._bindings = Bindings()
        self._shelf = Shelf(store, self._bindings, self._on_change)
        self._tier = HostTier(
            loader, self._shelf.locate, self.settings, self._background, self._on_change
        )
        self._live = LiveEntries(self._bindings, self._tier, self._background)
        self._follower = CatalogFollower(
            catalog, self._threads, self._bindings, self._live, self._shelf, self._background
        )
        self._changes = AdapterChanges(
            catalog,
            self._threads,
            shelf=self._shelf,
            bindings=self._bindings,
            tier=self._tier,
            live=self._live,
            follower=self._follower,
            background=self._background,
            publish_wait_seconds=self.settings.publish_wait_seconds,
            max_versions=self.settings.max_versions,
        )
        self._is_started = False

    @property
    def events(self) -> RegistryEvents:
        """Told about loads, evictions and waits."""
        return self._tier.events

    @events.setter
    def events(self, events: RegistryEvents) -> None:
        self._tier.events = events

    # Life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the catalog over and begin to follow it; does nothing the second time. Raises CatalogError."""
        if self._is_started:
            return
        await self._follower.sync()
        self._is_started = True
        self._background.spawn(self._follower.run(self.settings.poll_seconds))
        collector = Collector(self._collect, self.settings.collect_after_seconds / 2)
        self._background.spawn(collector.run())

    async def close(self) -> None:
        """Let changes under way end, stop everything else, and close the catalog."""
        await self._under_way.finish(_CLOSE_SECONDS)
        await self._background.cancel()
        await asyncio.to_thread(self._catalog.close)
        self._threads.close()

    # Changes ---------------------------------------------------------------------------------------------------

    async def publish(
        self,
        name: AdapterName,
        staged: StagedArtifact,
        *,
        can_replace: bool = True,
        wait: bool = True,
        progress: Progress | None = None,
        quota: CatalogQuota | None = None,
    ) -> PublishOutcome:
        """Validate staged files, keep them, and make them the version of `name` that new requests get.

        Goes on when the caller goes away. `staged` is used up, whatever happens.

        Args:
            name: where to publish.
            staged: the files.
            can_replace: whether a name that has other bytes may get these.
            wait: load first and commit then, so that no request waits; without it the load follows the answer.
            progress: told what has been reached.
            quota: what the tenant may have.

        Raises:
            ValueError: `name` is not an adapter's name.
            AdapterError: what the validator or the engine says about the adapter.
            AdapterLoadingError: the engine has not loaded it within `publish_wait_seconds`.
            AdapterExistsError, QuotaError, StorageError, CatalogError: see `shadow_runtime.errors`.
        """
        report = progress or report_nothing
        asked = PublishRequest(name, staged, report, can_replace, wait, quota)
        return await self._change(self._changes.publish(asked, self.validator))

    async def rollback(self, name: AdapterName, version: int | None = None) -> PublishOutcome:
        """Publish the bytes of an earlier version again; takes no load when the engine still holds them.

        Args:
            name: what to roll back.
            version: whose bytes; None for the newest earlier version with other bytes.

        Raises:
            AdapterNotFoundError: no such name or version.
            StorageError: the version's bytes are not in this server's store.
            AdapterLoadingError, CatalogError: as `publish`.
        """
        return await self._change(self._changes.rollback(name, version))

    async def delete(self, name: AdapterName, *, wait_seconds: float) -> AdapterEntry:
        """Take `name` from new requests, then wait for the requests that hold it, at most `wait_seconds`.

        Returns:
            The entry; its `settled` event tells whether it has left the engine within the wait.

        Raises:
            AdapterNotFoundError: no such name.
            CatalogError: nothing was deleted.
        """
        entry = await self._change(self._changes.delete(name))
        try:
            async with asyncio.timeout(wait_seconds):
                await entry.settled.wait()
        except TimeoutError:
            logger.info("adapter '%s' is deleted and still drains", entry.key)
        return entry

    async def pin(self, name: AdapterName) -> AdapterEntry:
        """Keep whatever version `name` has resident, from now on and after a restart.

        Raises:
            AdapterNotFoundError: no such name.
            CapacityError: no host memory or no pin is left.
            AdapterError, AdapterLoadingError, CatalogError: it could not be loaded or noted; nothing is pinned.
        """
        return await self._change(self._changes.pin(name))

    async def unpin(self, name: AdapterName) -> AdapterEntry:
        """Undo `pin`; does nothing for a name that is not pinned. Raises AdapterNotFoundError, CatalogError."""
        return await self._change(self._changes.unpin(name))

    # Requests --------------------------------------------------------------------------------------------------

    async def lease(self, name: AdapterName, version: int | None = None) -> Lease:
        """Hold the adapter that `name` means at this moment, and wait until the engine can serve it.

        Args:
            name: whose adapter.
            version: which one; None for the current one.

        Raises:
            AdapterNotFoundError: no such name or version.
            AdapterLoadingError: it was not resident within `adapter_wait_seconds`.
            AdapterFailedError: the engine could not load it; tried again after `retry_failed_seconds`.
        """
        # No await before the lease is counted: the version is that of the call, and it cannot be evicted any more.
        lease = self._live.lease(self._resolve(name, version))
        if self._tier.is_held(lease.entry.digest):
            return lease
        try:
            await self._wait_until_resident(lease.entry)
        except BaseException:
            lease.release()
            raise
        return lease

    def has(self, name: AdapterName, version: int | None = None) -> bool:
        """Return whether new requests for `name`, or for a version of it, find one."""
        try:
            self._find_version(name, version)
        except AdapterNotFoundError:
            return False
        return True

    def get(self, name: AdapterName, version: int | None = None) -> AdapterEntry:
        """Return the entry of a name or version; of a deleted name the newest that still drains.

        Raises:
            AdapterNotFoundError: no such name or version.
        """
        if version is None and not self.has(name):
            draining = self._bindings.find_draining(name)
            if draining is not None:
                return draining
        record = self._find_version(name, version)
        entry = self._bindings.find_entry(f"{name}@{record.version}")
        return entry or self._live.picture(record)

    def entries(self, tenant: str | None = None) -> list[AdapterEntry]:
        """Return what names are bound to and what still drains, of one tenant or of all."""
        return self._bindings.entries(tenant)

    def versions(self, name: AdapterName) -> tuple[VersionRecord, ...]:
        """Return all versions of a name, oldest first; raises AdapterNotFoundError."""
        return self._bindings.get_record(name).versions

    def is_pinned(self, name: AdapterName) -> bool:
        """Return whether `name` exists and is pinned."""
        return self._bindings.is_pinned(name)

    def find_by_key(self, key: str) -> AdapterEntry | None:
        """Return the entry with this `AdapterEntry.key`, None when it has left."""
        return self._bindings.find_entry(key)

    async def refresh_levels(self) -> None:
        """Bring `AdapterEntry.level` up to date: slots change hands in every step."""
        await self._tier.refresh_levels()
        await self._shelf.look_for(self._bindings.unstored())

    @property
    def num_host_bytes(self) -> int:
        """Host memory of the adapters that the engine holds or is about to hold, in bytes."""
        return self._tier.num_host_bytes

    async def usage(self, tenant: str) -> CatalogUsage:
        """Return what a tenant has in the catalog; raises CatalogError."""
        return await self._threads.run(self._catalog.usage, tenant)

    def num_resident(self, tenant: str) -> int:
        """Return how many digests of a tenant's entries the engine holds or is about to load."""
        return sum(tenant in self._bindings.tenants_of(digest) for digest in self._tier.present())

    async def make_room(self, tenant: str, max_resident: int, digest: str | None = None) -> bool:
        """Evict what a tenant has used longest ago until the engine holds fewer than `max_resident` digests of it.

        Digests that another tenant has, too, count and stay; so do those that are being loaded. Who leases in the
        same step of the event loop in which this returns True keeps the tenant within the bound.

        Args:
            tenant: whose digests.
            max_resident: with the one that is to come.
            digest: what is to come, None for one not known yet; one that is there needs no room.

        Returns:
            False when leases, pins, loads or other tenants prevent it.
        """
        if digest in self._tier.present():
            return True
        while self.num_resident(tenant) >= max_resident:
            own = {d for d in self._tier.present() if self._bindings.tenants_of(d) == {tenant}}
            if not await self._tier.evict_one(own):
                return False
        return True

    def check_integrity(self) -> None:
        """Raise RuntimeError, with one sentence, when an invariant does not hold."""
        self._bindings.check_integrity()
        self._live.check_integrity()
        self._tier.check_integrity()
        for name in self._bindings.names():
            entry = self._bindings.find_current(name)
            if entry is not None and self.is_pinned(name):
                holding = self._tier.find(entry.digest)
                if holding is None or name not in holding.pinned_by:
                    raise RuntimeError(f"'{name}' is pinned and the tier does not know it")

    # Inside ----------------------------------------------------------------------------------------------------

    async def _change(self, work: Coroutine[Any, Any, T]) -> T:
        # Shielded: a caller that goes away must not leave half a change.
        return await asyncio.shield(self._under_way.spawn(work))

    async def _collect(self) -> None:
        await self._shelf.collect(
            self._catalog.referenced_digests, self.settings.collect_after_seconds
        )

    def _on_change(self, digest: str) -> None:
        self._live.refresh(digest)

    def _resolve(self, name: AdapterName, version: int | None) -> AdapterEntry:
        if version is None:
            return self._bindings.get_current(name)
        return self._live.recall(self._bindings.get_version(name, version))

    async def _wait_until_resident(self, entry: AdapterEntry) -> None:
        failure = self._tier.find_recent_failure(entry.digest)
        if failure is not None:
            raise _failed(entry, failure)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.adapter_wait_seconds) as limit:
                await self._tier.ensure(entry.manifest, "store", is_patient=True)
        except (AdapterLoadingError, CapacityError) as error:
            raise AdapterLoadingError(
                f"The adapter '{entry.name.display}' is not loaded: {error}."
            ) from error
        except Exception as error:
            if limit.expired():
                raise _late(entry, self.settings.adapter_wait_seconds) from None
            raise _failed(entry, error) from error
        finally:
            self.events.on_wait(time.monotonic() - started)

    def _find_version(self, name: AdapterName, version: int | None) -> VersionRecord:
        return (
            self._bindings.get_current(name).record
            if version is None
            else self._bindings.get_version(name, version)
        )


def _failed(entry: AdapterEntry, error: Exception) -> AdapterFailedError:
    return AdapterFailedError(f"The adapter '{entry.name.display}' cannot be loaded: {error}")


def _late(entry: AdapterEntry, seconds: float) -> AdapterLoadingError:
    return AdapterLoadingError(
        f"The adapter '{entry.name.display}' was not loaded within {seconds:g} s; try again."
    )
