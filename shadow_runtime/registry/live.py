"""Entries at work: who leases them, what a flip sets in motion, and when the engine lets a digest go.

Runs in: API process.

Life of the entry of version n while version n + 1 is published (leases drawn as intervals):

    lease of n    ├──────────────────────┤                          any number of them
    name means    n n n n n n n│n+1 n+1 n+1 n+1 ...                 the flip: new leases get n + 1
    entry n       RESIDENT     │DRAINING │slot released             after its last lease, settled
    digest of n   slot + host  │         │host only                 until evicted; a rollback needs no load
                                          or unloaded               when no version of any name has it (deleted)
"""

from __future__ import annotations

import logging
from collections import Counter

from shadow_runtime.catalog.record import AdapterRecord, VersionRecord
from shadow_runtime.errors import ShadowError
from shadow_runtime.registry.background import Background
from shadow_runtime.registry.binding import Bindings, Rebinding
from shadow_runtime.registry.entry import AdapterEntry, AdapterState, LoadSource
from shadow_runtime.registry.lease import Lease
from shadow_runtime.registry.tier import HostTier

logger = logging.getLogger(__name__)


class LiveEntries:
    """Keeps bindings, leases and the host tier in step.

    Invariants (`check_integrity`):
        A digest has as many leases in the tier as its entries have together.
        An entry that no name is bound to and no request leases is on its way out.
        The digests that pinned names answer with are pinned in the tier.

    Ownership: one event loop. Flips, leases and releases are synchronous; what they set in motion in the engine runs
    in tasks that log their own failures and are tried again by `retry`.
    """

    def __init__(self, bindings: Bindings, tier: HostTier, background: Background) -> None:
        self._bindings = bindings
        self._tier = tier
        self._background = background
        self._leaving: Counter[str] = Counter()
        self._stuck: dict[str, AdapterEntry] = {}
        self._owed: set[str] = set()
        self._recalled: set[str] = set()
        self._told: set[str] = set()

    # Flips -----------------------------------------------------------------------------------------------------

    def apply(self, record: AdapterRecord) -> Rebinding | None:
        """Take a record of the catalog over; from the next statement on new requests get what it says."""
        change = self._bindings.apply(record)
        if change is None:
            return None
        self._move_pin(change)
        if change.current is not None:
            self._recalled.discard(change.current.key)
            self._show(change.current)
        if change.left is not None:
            self._supersede(change.left)
        if change.current is None:
            self._drain_recalled(record)
        for digest in change.dropped:
            self._told.discard(digest)
            self._background.spawn(self._settle(digest))
        return change

    def _supersede(self, entry: AdapterEntry) -> None:
        entry.settled.clear()
        self._show(entry)
        if not self._bindings.is_answering(entry.digest):
            self._tier.demote(entry.digest)
        if entry.num_leases == 0:
            self._retire(entry)

    def _drain_recalled(self, record: AdapterRecord) -> None:
        for entry in self._bindings.entries(record.name.tenant):
            if entry.name == record.name:
                self._recalled.discard(entry.key)
                self._show(entry)

    def _move_pin(self, change: Rebinding) -> None:
        if change.unpinned == change.pinned:
            return
        if change.unpinned is not None:
            self._tier.unpin(change.unpinned, change.name)
        if change.pinned is not None and change.current is not None:
            self._tier.pin(change.current.manifest, change.name)
        self._background.spawn(self._sync_pins(change))

    async def _sync_pins(self, change: Rebinding) -> None:
        # In this order: the engine may have no pin to spare.
        if change.unpinned is not None:
            await self.sync_pin(change.unpinned)
        if change.pinned is not None and change.current is not None:
            await self.bring_and_pin(change.current)

    async def bring_and_pin(self, entry: AdapterEntry) -> None:
        """Make a pinned entry resident and pinned in the engine, as far as that is possible now."""
        if await self.bring(entry, "store"):
            await self.sync_pin(entry.digest)

    async def sync_pin(self, digest: str) -> None:
        """Tell the engine whether a digest is pinned; what it refuses is logged and tried again by `retry`."""
        try:
            await self._tier.sync_pin(digest)
        except Exception as error:
            self._tell(digest, "was not pinned or unpinned", error)
        else:
            self._told.discard(digest)

    async def bring(self, entry: AdapterEntry, source: LoadSource) -> bool:
        """Load an entry ahead of its first request; returns whether the engine holds it. Failures are logged."""
        try:
            if self._bindings.is_current(entry):
                await self._tier.ensure(entry.manifest, source, is_patient=False)
        except Exception as error:
            self._tell(entry.digest, f"of '{entry.key}' was not loaded ahead", error)
        if not self._bindings.is_current(entry):
            # Superseded while it was loaded: nobody else gives its slot back.
            await self._settle(entry.digest)
        return self._tier.is_held(entry.digest)

    def _tell(self, digest: str, what: str, error: Exception) -> None:
        # What is tried again every poll is told once.
        level = logging.DEBUG if digest in self._told else logging.WARNING
        trace = None if isinstance(error, ShadowError) else error
        logger.log(level, "adapter %s %s: %s", digest, what, error, exc_info=trace)
        self._told.add(digest)

    # Leases ----------------------------------------------------------------------------------------------------

    def lease(self, entry: AdapterEntry) -> Lease:
        """Count one more request on an entry."""
        entry.num_leases += 1
        self._tier.lease(entry.manifest)
        return Lease(entry, self._release)

    def recall(self, version: VersionRecord) -> AdapterEntry:
        """Return the entry of a version that was asked for by its number, alive until its last lease ends."""
        entry = self._bindings.open_entry(version)
        if not self._bindings.is_current(entry):
            self._recalled.add(entry.key)
            self._show(entry)
        return entry

    def _release(self, entry: AdapterEntry) -> None:
        entry.num_leases -= 1
        self._tier.release(entry.digest)
        if entry.num_leases == 0 and not self._bindings.is_current(entry):
            self._retire(entry)

    # Leaving ---------------------------------------------------------------------------------------------------

    def _retire(self, entry: AdapterEntry) -> None:
        self._leaving[entry.key] += 1
        self._background.spawn(self._leave(entry))

    async def _leave(self, entry: AdapterEntry) -> None:
        self._stuck.pop(entry.key, None)
        try:
            await self._free(entry.digest)
        except Exception:
            logger.exception("the engine did not let adapter '%s' go; it is asked again", entry.key)
            self._stuck[entry.key] = entry
        else:
            self._close(entry)
        finally:
            self._leaving[entry.key] -= 1
            if not self._leaving[entry.key]:
                del self._leaving[entry.key]

    def _close(self, entry: AdapterEntry) -> None:
        # It may have been leased again by its number meanwhile.
        if entry.num_leases or self._bindings.is_current(entry):
            return
        self._recalled.discard(entry.key)
        self._bindings.close_entry(entry)
        if not self._bindings.entries_of(entry.digest):
            self._tier.forget_failure(entry.digest)
        entry.state = AdapterState.DRAINING
        entry.settled.set()

    async def _free(self, digest: str) -> None:
        if not self._bindings.is_referenced(digest):
            await self._tier.unload(digest, lambda: self._bindings.is_referenced(digest))
        elif not self._bindings.is_answering(digest):
            await self._tier.release_slot(digest, lambda: self._bindings.is_answering(digest))

    async def _settle(self, digest: str) -> None:
        self._owed.discard(digest)
        try:
            await self._free(digest)
        except Exception:
            logger.exception("the engine did not let %s go; it is asked again", digest)
            self._owed.add(digest)

    def settle(self, digest: str) -> None:
        """Let the engine free what a digest no longer needs, in the background."""
        self._background.spawn(self._settle(digest))

    def retry(self) -> None:
        """Try again what the engine refused."""
        for entry in list(self._stuck.values()):
            self._retire(entry)
        for digest in list(self._owed):
            self.settle(digest)
        for digest in self._tier.find_unsynced_pins():
            self._background.spawn(self._retry_pin(digest))

    async def _retry_pin(self, digest: str) -> None:
        current = (e for e in self._bindings.entries_of(digest) if self._bindings.is_current(e))
        entry = next(current, None)
        if entry is None:
            await self.sync_pin(digest)
        else:
            await self.bring_and_pin(entry)

    # What entries show -----------------------------------------------------------------------------------------

    def refresh(self, digest: str) -> None:
        """Bring state and level of a digest's entries up to date."""
        for entry in self._bindings.entries_of(digest):
            self._show(entry)

    def is_held(self, entry: AdapterEntry) -> bool:
        """Return whether the engine can serve an entry now."""
        return self._tier.is_held(entry.digest)

    def picture(self, version: VersionRecord) -> AdapterEntry:
        """Return an entry of a version that no request holds and no name is bound to; it is in no table."""
        entry = AdapterEntry(version, self._bindings.localise(version.artifact.manifest))
        holding = self._tier.find(version.digest)
        entry.level = "disk" if holding is None else holding.level
        entry.state = self._state_of_digest(version.digest)
        entry.settled.set()
        return entry

    def _show(self, entry: AdapterEntry) -> None:
        holding = self._tier.find(entry.digest)
        entry.level = "disk" if holding is None else holding.level
        entry.state = self.state_of(entry)
        is_failed = entry.state is AdapterState.FAILED and holding is not None
        entry.failure = holding.failure if is_failed and holding is not None else None

    def state_of(self, entry: AdapterEntry) -> AdapterState:
        """Return what `AdapterEntry.state` is to show."""
        if not self._bindings.is_current(entry) and entry.key not in self._recalled:
            return AdapterState.DRAINING
        return self._state_of_digest(entry.digest)

    def _state_of_digest(self, digest: str) -> AdapterState:
        holding = self._tier.find(digest)
        if holding is not None and holding.is_held:
            return AdapterState.RESIDENT
        if holding is not None and holding.load is not None:
            return AdapterState.LOADING
        if holding is not None and holding.failure is not None:
            return AdapterState.FAILED
        is_stored = self._bindings.is_stored(digest)
        return AdapterState.RESIDENT if is_stored else AdapterState.REGISTERED

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        leases: Counter[str] = Counter()
        for entry in self._bindings.entries():
            leases[entry.digest] += entry.num_leases
            if entry.num_leases < 0:
                raise RuntimeError(f"'{entry.key}' has {entry.num_leases} leases")
            is_going = entry.key in self._leaving or entry.key in self._stuck
            if not self._bindings.is_current(entry) and not entry.num_leases and not is_going:
                raise RuntimeError(f"'{entry.key}' is idle, answers nothing and does not leave")
            if entry.state is not self.state_of(entry):
                raise RuntimeError(
                    f"'{entry.key}' shows {entry.state}, it is {self.state_of(entry)}"
                )
        for digest, num_leases in leases.items():
            holding = self._tier.find(digest)
            if num_leases != (0 if holding is None else holding.num_leases):
                raise RuntimeError(f"{digest} has {num_leases} leases, the tier counts others")
