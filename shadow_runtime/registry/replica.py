"""Follows the catalog, which other servers write, too.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging

from shadow_runtime.catalog import Catalog
from shadow_runtime.catalog.record import AdapterRecord, CatalogChanges
from shadow_runtime.errors import ShadowError
from shadow_runtime.registry.background import Background
from shadow_runtime.registry.binding import Bindings
from shadow_runtime.registry.live import LiveEntries
from shadow_runtime.registry.offload import Offload
from shadow_runtime.registry.shelf import Shelf
from shadow_runtime.types import AdapterName

logger = logging.getLogger(__name__)

_APPLY_AT_ONCE = 256
"""Records between two turns of the event loop: some milliseconds."""


class CatalogFollower:
    """Reads what changed since the last time and takes it over, in the order of revisions.

    Invariants: reads never overlap; a revision counts as seen only after its changes were applied.

    Failure: a read that fails has changed nothing, and the next one sees what it would have seen.
    """

    def __init__(
        self,
        catalog: Catalog,
        threads: Offload,
        bindings: Bindings,
        live: LiveEntries,
        shelf: Shelf,
        background: Background,
    ) -> None:
        self._catalog = catalog
        self._threads = threads
        self._bindings = bindings
        self._live = live
        self._shelf = shelf
        self._background = background
        self._revision = 0
        self._turn = asyncio.Lock()
        self._is_out = False

    async def sync(self) -> None:
        """Read once; raises CatalogError, and nothing has changed then."""
        async with self._turn:
            changes = await self._threads.run(self._catalog.changes_since, self._revision)
            await self._take_over(changes)
            self._revision = changes.revision

    async def run(self, poll_seconds: float) -> None:
        """Read until cancelled. An outage is logged once, at its beginning and at its end."""
        while True:
            await asyncio.sleep(poll_seconds)
            await self._poll()

    async def _poll(self) -> None:
        try:
            await self.sync()
            self._live.retry()
        except Exception as error:
            if not self._is_out:
                self._report(error)
            self._is_out = True
        else:
            if self._is_out:
                logger.warning("the registry's database answers again")
            self._is_out = False

    def _report(self, error: Exception) -> None:
        trace = None if isinstance(error, ShadowError) else error
        logger.error(
            "changes by other servers are not seen until this ends: %s", error, exc_info=trace
        )

    async def _take_over(self, changes: CatalogChanges) -> None:
        await self._shelf.look_for(_current_digests(changes))
        if changes.revision < self._revision:
            # The database was put back to an older state: what it does not have is gone.
            self._bindings.forget_revisions()
            changes = _with_deletions(changes, self._bindings.names())
        for number, record in enumerate(changes.adapters, start=1):
            self._take_over_name(record)
            if number % _APPLY_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._bindings.note_seen(changes.revision)

    def _take_over_name(self, record: AdapterRecord) -> None:
        before = self._bindings.find_current(record.name)
        was_held = before is not None and self._live.is_held(before)
        change = self._live.apply(record)
        if change is not None and change.left is before and change.current and was_held:
            # Its requests go on with the new version at once, so they should not have to wait for it.
            self._background.spawn(self._live.bring(change.current, "store"))


def _current_digests(changes: CatalogChanges) -> list[str]:
    return [v.digest for r in changes.adapters for v in r.versions if v.version == r.current]


def _with_deletions(changes: CatalogChanges, names: list[AdapterName]) -> CatalogChanges:
    """Return changes that also delete the names that they do not mention."""
    known = {record.name for record in changes.adapters}
    gone = [
        AdapterRecord(n, 0, (), is_pinned=False, is_deleted=True, revision=changes.revision)
        for n in names
        if n not in known
    ]
    return CatalogChanges(changes.revision, (*changes.adapters, *gone))
