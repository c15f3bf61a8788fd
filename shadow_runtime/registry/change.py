"""What changes a name: publish, rollback, delete, pin. Every change ends in one SQL transaction.

Runs in: API process.

A publish, and what a crash leaves at each point:

    staged ──validate──> store ──load──> SQL commit ──flip──> answer
    └────── nothing but unreferenced bytes ──┘ └─ the new version is there for good, on every server
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shadow_runtime.catalog import Catalog
from shadow_runtime.catalog.record import (
    AdapterRecord,
    ArtifactRecord,
    CatalogQuota,
    Published,
    VersionRecord,
)
from shadow_runtime.errors import (
    AdapterError,
    AdapterLoadingError,
    AdapterNotFoundError,
    CapacityError,
    DigestMismatchError,
    StorageError,
)
from shadow_runtime.registry.background import Background
from shadow_runtime.registry.binding import Bindings
from shadow_runtime.registry.entry import (
    AdapterEntry,
    LoadSource,
    Progress,
    PublishOutcome,
    Validator,
)
from shadow_runtime.registry.gate import KeyedLock
from shadow_runtime.registry.live import LiveEntries
from shadow_runtime.registry.name import is_adapter_name, is_tenant_name
from shadow_runtime.registry.offload import Offload
from shadow_runtime.registry.replica import CatalogFollower
from shadow_runtime.registry.shelf import Shelf
from shadow_runtime.registry.tier import HostTier
from shadow_runtime.store import StagedArtifact
from shadow_runtime.types import AdapterManifest, AdapterName

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What `AdapterRegistry.publish` was asked for; see there."""

    name: AdapterName
    staged: StagedArtifact
    report: Progress
    can_replace: bool
    should_wait: bool
    quota: CatalogQuota | None


class AdapterChanges:
    """Makes the changes of names, each name's one after the other.

    Ownership: one event loop.

    Failure: a change that raises has changed nothing that a request can see.
    """

    def __init__(
        self,
        catalog: Catalog,
        threads: Offload,
        *,
        shelf: Shelf,
        bindings: Bindings,
        tier: HostTier,
        live: LiveEntries,
        follower: CatalogFollower,
        background: Background,
        publish_wait_seconds: float,
        max_versions: int | None,
    ) -> None:
        self._catalog = catalog
        self._threads = threads
        self._shelf = shelf
        self._bindings = bindings
        self._tier = tier
        self._live = live
        self._follower = follower
        self._background = background
        self._publish_wait_seconds = publish_wait_seconds
        self._max_versions = max_versions
        self._names = KeyedLock()

    # Publish ---------------------------------------------------------------------------------------------------

    async def publish(self, asked: PublishRequest, validator: Validator) -> PublishOutcome:
        """See `AdapterRegistry.publish`."""
        name, staged = asked.name, asked.staged
        try:
            if not is_tenant_name(name.tenant) or not is_adapter_name(name.name):
                raise ValueError(f"not an adapter's name: {str(name)!r}")
            async with self._names.hold(name):
                # First: while the database is down nothing is read, loaded or evicted for nothing.
                await self._follower.sync()
                manifest = await _validate(staged, validator, asked.report)
                await self._check_allowed(asked, manifest)
                is_damaged = self._is_damaged(manifest.digest)
                manifest, stored = await self._shelf.keep(staged, manifest, replace=is_damaged)
                has_config = stored.backbone_config is not None
                artifact = ArtifactRecord(manifest, stored.num_bytes, has_config)
                commit = functools.partial(
                    self._catalog.publish,
                    name,
                    artifact,
                    source=staged.source,
                    can_replace=asked.can_replace,
                    quota=asked.quota,
                    max_versions=self._max_versions,
                )
                return await self._make(name, manifest, commit, asked.report, asked.should_wait)
        finally:
            await asyncio.to_thread(staged.discard)

    async def _check_allowed(self, asked: PublishRequest, manifest: AdapterManifest) -> None:
        # The publishing transaction decides. This keeps what it would refuse from disk and engine, where it might cost
        # other tenants' adapters their places.
        has_config = asked.staged.backbone_config is not None
        artifact = ArtifactRecord(manifest, asked.staged.num_bytes, has_config)
        check = functools.partial(
            self._catalog.check_publish,
            asked.name,
            artifact,
            can_replace=asked.can_replace,
            quota=asked.quota,
        )
        await self._threads.run(check)

    async def rollback(self, name: AdapterName, version: int | None) -> PublishOutcome:
        """See `AdapterRegistry.rollback`."""
        async with self._names.hold(name):
            record = await self._get_fresh_record(name)
            target = self._find_rollback_target(record, version)
            commit = functools.partial(
                self._catalog.rollback, name, target.version, max_versions=self._max_versions
            )
            return await self._make(name, target.artifact.manifest, commit, report_nothing, True)

    def _find_rollback_target(self, record: AdapterRecord, version: int | None) -> VersionRecord:
        if version is not None:
            return self._bindings.get_version(record.name, version)
        digest = self._bindings.get_version(record.name, record.current).digest
        for target in reversed(record.versions):
            if target.version < record.current and target.digest != digest:
                return target
        raise AdapterNotFoundError(
            f"The adapter '{record.name.display}' has no earlier version with other bytes."
        )

    async def _make(
        self,
        name: AdapterName,
        manifest: AdapterManifest,
        commit: Callable[[], Published],
        report: Progress,
        should_wait: bool,
    ) -> PublishOutcome:
        """Load, commit to SQL, flip; the load comes last for a caller that does not wait."""
        digest = manifest.digest
        try:
            # Held, so that no other load takes its place before the flip.
            with self._tier.hold(manifest):
                if should_wait:
                    report("loading", {})
                    await self._load_ahead(manifest)
                await self._check_bytes(manifest)
                # Looked up first: the poll may see the commit before we hear of it.
                before = self._bindings.find_current(name)
                outcome = self._flip(before, await self._threads.run(commit))
        except BaseException:
            # What was loaded for a version that does not come about has no business in the engine.
            self._live.settle(digest)
            raise
        report("registered", {"version": outcome.entry.version})
        if not should_wait:
            self._background.spawn(self._live.bring(outcome.entry, "publish"))
        elif self._tier.is_held(digest):
            report("resident", {})
        return outcome

    def _is_damaged(self, digest: str) -> bool:
        """Whether the engine could not read these bytes, though they were right when they were stored."""
        holding = self._tier.find(digest)
        return holding is not None and isinstance(
            holding.failure, AdapterError | DigestMismatchError
        )

    async def _load_ahead(self, manifest: AdapterManifest) -> None:
        was_held = self._tier.is_held(manifest.digest)
        try:
            await self._load(manifest, "publish")
        except CapacityError as error:
            logger.info("adapter %s is published to disk only: %s", manifest.digest, error)
        if was_held:
            await self._tier.prefetch(manifest.digest)

    async def _load(self, manifest: AdapterManifest, source: LoadSource) -> None:
        try:
            async with asyncio.timeout(self._publish_wait_seconds) as limit:
                await self._tier.ensure(manifest, source, is_patient=False)
        except TimeoutError:
            if not limit.expired():
                raise
            raise AdapterLoadingError(
                f"The engine has not loaded the adapter within {self._publish_wait_seconds:g} s; try again."
            ) from None

    async def _check_bytes(self, manifest: AdapterManifest) -> None:
        # Between storing and naming them another server may have collected bytes that no version had.
        if await self._shelf.locate(manifest) is None:
            raise StorageError("The adapter's bytes are not in this server's store; publish them.")

    def _flip(self, before: AdapterEntry | None, published: Published) -> PublishOutcome:
        self._live.apply(published.record)
        version = published.version
        # None when another server's change, committed after ours, was seen before ours.
        entry = self._bindings.find_entry(f"{version.name}@{version.version}")
        entry = entry or self._live.picture(version)
        is_replaced = published.is_new and before is not None and before is not entry
        return PublishOutcome(entry, published.is_new, before if is_replaced else None)

    # Delete, pin -----------------------------------------------------------------------------------------------

    async def delete(self, name: AdapterName) -> AdapterEntry:
        """Delete in the catalog and here; returns the entry, which may still drain."""
        async with self._names.hold(name):
            await self._get_fresh_record(name)
            entry = self._bindings.get_current(name)
            self._live.apply(await self._threads.run(self._catalog.delete, name))
            return entry

    async def pin(self, name: AdapterName) -> AdapterEntry:
        """See `AdapterRegistry.pin`."""
        async with self._names.hold(name):
            record = await self._get_fresh_record(name)
            entry = self._bindings.get_current(name)
            self._tier.pin(entry.manifest, name)
            try:
                await self._load(entry.manifest, "store")
                await self._tier.sync_pin(entry.digest)
                self._live.apply(await self._threads.run(self._catalog.set_pinned, name, True))
            finally:
                await self._undo_pin(name, entry, record.is_pinned)
            return self._bindings.get_current(name)

    async def _undo_pin(self, name: AdapterName, entry: AdapterEntry, was_pinned: bool) -> None:
        """Take back a pin that did not come about, or that another server's publish has moved."""
        is_pinned = was_pinned or self._bindings.is_pinned(name)
        if not is_pinned or not self._bindings.is_current(entry):
            self._tier.unpin(entry.digest, name)
            await self._live.sync_pin(entry.digest)

    async def unpin(self, name: AdapterName) -> AdapterEntry:
        """See `AdapterRegistry.unpin`."""
        async with self._names.hold(name):
            await self._get_fresh_record(name)
            entry = self._bindings.get_current(name)
            self._live.apply(await self._threads.run(self._catalog.set_pinned, name, False))
            await self._live.sync_pin(entry.digest)
            return entry

    async def _get_fresh_record(self, name: AdapterName) -> AdapterRecord:
        """Return the record of a name as all servers have made it until now."""
        await self._follower.sync()
        return self._bindings.get_record(name)


def report_nothing(stage: str, details: Mapping[str, Any]) -> None:
    """Nobody listens."""


async def _validate(
    staged: StagedArtifact, validator: Validator, report: Progress
) -> AdapterManifest:
    config = None if staged.backbone_config is None else str(staged.backbone_config)
    with staged.canonical_file() as canonical:
        manifest = await validator.validate(str(staged.path), config, canonical)
    report("validated", {"digest": manifest.digest})
    return manifest
