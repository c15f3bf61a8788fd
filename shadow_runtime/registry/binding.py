"""Which names there are, what each is bound to, and which entries are alive: the catalog as this server knows it.

Runs in: API process.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from dataclasses import dataclass

from shadow_runtime.catalog.record import AdapterRecord, VersionRecord
from shadow_runtime.errors import AdapterNotFoundError
from shadow_runtime.registry.entry import AdapterEntry
from shadow_runtime.store import StoredArtifact
from shadow_runtime.types import AdapterManifest, AdapterName


@dataclass(frozen=True, slots=True)
class Rebinding:
    """What a change of one name did.

    Attributes:
        name: the name.
        left: the entry that it was bound to until now, None when it was not or still is.
        current: the entry that it is bound to now, None when it is deleted.
        dropped: digests that no version of any name has any more.
        unpinned, pinned: digest that the name pinned until now, and that it pins now.
    """

    name: AdapterName
    left: AdapterEntry | None
    current: AdapterEntry | None
    dropped: frozenset[str]
    unpinned: str | None
    pinned: str | None


class Bindings:
    """Names to entries, without any waiting: every change is complete before anybody else runs.

    Invariants (`check_integrity`):
        A name that is not deleted is bound to exactly one entry, that of its record's current version.
        An entry is alive while its name is bound to it, a request leases it, or it has not left yet.
        A change that is not newer than what is known of its name changes nothing.

    Ownership: one event loop.
    """

    def __init__(self) -> None:
        self._records: dict[AdapterName, AdapterRecord] = {}
        self._current: dict[AdapterName, AdapterEntry] = {}
        self._entries: dict[str, AdapterEntry] = {}
        self._by_tenant: dict[str, dict[str, AdapterEntry]] = {}
        self._by_digest: dict[str, dict[str, AdapterEntry]] = {}
        self._num_versions: Counter[str] = Counter()
        self._num_names: Counter[str] = Counter()
        self._stored: dict[str, StoredArtifact] = {}
        self._seen_revision = 0

    # Looking ---------------------------------------------------------------------------------------------------

    def find_record(self, name: AdapterName) -> AdapterRecord | None:
        """Return the catalog's record of a name that is not deleted."""
        record = self._records.get(name)
        return None if record is None or record.is_deleted else record

    def get_record(self, name: AdapterName) -> AdapterRecord:
        """Return the catalog's record of a name; raises AdapterNotFoundError."""
        record = self.find_record(name)
        if record is None:
            raise AdapterNotFoundError(f"The adapter '{name.display}' does not exist.")
        return record

    def is_pinned(self, name: AdapterName) -> bool:
        """Return whether a name exists and is pinned."""
        record = self.find_record(name)
        return record is not None and record.is_pinned

    def names(self) -> list[AdapterName]:
        """Return every name that answers."""
        return list(self._current)

    def find_current(self, name: AdapterName) -> AdapterEntry | None:
        """Return the entry that answers new requests for a name."""
        return self._current.get(name)

    def get_current(self, name: AdapterName) -> AdapterEntry:
        """Return the entry that answers new requests for a name; raises AdapterNotFoundError."""
        entry = self._current.get(name)
        if entry is None:
            raise AdapterNotFoundError(f"The adapter '{name.display}' does not exist.")
        return entry

    def find_entry(self, key: str) -> AdapterEntry | None:
        """Return the entry with this key while it is alive."""
        return self._entries.get(key)

    def find_draining(self, name: AdapterName) -> AdapterEntry | None:
        """Return the newest entry of a name that has not left yet."""
        mine = self._by_tenant.get(name.tenant, {}).values()
        return max((e for e in mine if e.name == name), key=lambda e: e.version, default=None)

    def entries(self, tenant: str | None = None) -> list[AdapterEntry]:
        """Return every entry that is alive, of one tenant or of all."""
        found = self._entries if tenant is None else self._by_tenant.get(tenant, {})
        return list(found.values())

    def entries_of(self, digest: str) -> list[AdapterEntry]:
        """Return the entries with a digest that are alive."""
        return list(self._by_digest.get(digest, {}).values())

    def tenants_of(self, digest: str) -> set[str]:
        """Return whose entries with a digest are alive."""
        return {entry.name.tenant for entry in self._by_digest.get(digest, {}).values()}

    def get_version(self, name: AdapterName, version: int) -> VersionRecord:
        """Return a version of a name; raises AdapterNotFoundError."""
        found = _find_version(self.get_record(name), version)
        if found is None:
            raise AdapterNotFoundError(f"The adapter '{name.display}' has no version {version}.")
        return found

    def is_current(self, entry: AdapterEntry) -> bool:
        """Return whether new requests for the entry's name get it."""
        return self._current.get(entry.name) is entry

    def is_answering(self, digest: str) -> bool:
        """Return whether some name answers with a digest."""
        return self._num_names[digest] > 0

    def is_referenced(self, digest: str) -> bool:
        """Return whether some version of some name has a digest."""
        return self._num_versions[digest] > 0

    def is_stored(self, digest: str) -> bool:
        """Return whether the digest's bytes were in this server's store when it looked last."""
        return digest in self._stored

    def unstored(self) -> list[str]:
        """Return the digests that names answer with and whose bytes were not in the store."""
        return [d for d, count in self._num_names.items() if count and d not in self._stored]

    def localise(self, manifest: AdapterManifest) -> AdapterManifest:
        """Return a manifest with this server's paths, as far as they are known."""
        stored = self._stored.get(manifest.digest)
        if stored is None:
            return manifest
        config = None if stored.backbone_config is None else str(stored.backbone_config)
        return dataclasses.replace(manifest, path=str(stored.path), backbone_config=config)

    # Changing --------------------------------------------------------------------------------------------------

    def note_stored(self, digest: str, stored: StoredArtifact | None) -> None:
        """Remember where a digest's bytes are, None when they are not here."""
        if stored is None:
            self._stored.pop(digest, None)
        else:
            self._stored[digest] = stored
        for entry in self.entries_of(digest):
            entry.manifest = self.localise(entry.manifest)

    def note_seen(self, revision: int) -> None:
        """Remember that every change up to `revision` was applied; what deleted names left is forgotten."""
        self._seen_revision = revision
        gone = [n for n, r in self._records.items() if r.is_deleted and r.revision <= revision]
        for name in gone:
            del self._records[name]

    def forget_revisions(self) -> None:
        """Take what comes next for new: the database was put back to an older state."""
        self._seen_revision = -1
        for name, record in self._records.items():
            self._records[name] = dataclasses.replace(record, revision=-1)

    def apply(self, record: AdapterRecord) -> Rebinding | None:
        """Take a record of the catalog over; None when it is not newer than what is known."""
        known = self._records.get(record.name)
        if record.revision <= (self._seen_revision if known is None else known.revision):
            return None
        before = None if known is None or known.is_deleted else known
        now = None if record.is_deleted else record
        was_pinned = self._pinned_digest(before)
        dropped = self._count_versions(before, now)
        left = self._current.get(record.name)
        self._records[record.name] = record
        current = None if now is None else self._bind(now)
        if current is left:
            left = None
        elif left is not None:
            self._unbind(left, is_deleted=now is None)
        return Rebinding(record.name, left, current, dropped, was_pinned, self._pinned_digest(now))

    def open_entry(self, version: VersionRecord) -> AdapterEntry:
        """Return the version's entry, a new one when it has none that is alive."""
        entry = self._entries.get(f"{version.name}@{version.version}")
        if entry is not None and entry.digest != version.digest:
            # The database was put back to an older state and has given this number again.
            self.close_entry(entry)
            entry = None
        if entry is None:
            entry = AdapterEntry(version, self.localise(version.artifact.manifest))
            self._entries[entry.key] = entry
            self._by_tenant.setdefault(entry.name.tenant, {})[entry.key] = entry
            self._by_digest.setdefault(entry.digest, {})[entry.key] = entry
        return entry

    def close_entry(self, entry: AdapterEntry) -> None:
        """Forget an entry that has left; the second call does nothing."""
        if self._entries.get(entry.key) is not entry:
            return
        del self._entries[entry.key]
        for index, key in ((self._by_tenant, entry.name.tenant), (self._by_digest, entry.digest)):
            del index[key][entry.key]
            if not index[key]:
                del index[key]

    def _bind(self, record: AdapterRecord) -> AdapterEntry:
        entry = self.open_entry(self.get_version(record.name, record.current))
        if self._current.get(record.name) is not entry:
            self._current[record.name] = entry
            self._num_names[entry.digest] += 1
        return entry

    def _unbind(self, entry: AdapterEntry, *, is_deleted: bool) -> None:
        if is_deleted:
            del self._current[entry.name]
        _count_down(self._num_names, entry.digest)

    def _count_versions(
        self, before: AdapterRecord | None, now: AdapterRecord | None
    ) -> frozenset[str]:
        old = () if before is None else before.versions
        new = () if now is None else now.versions
        # Versions are only ever added, until the name is deleted; thousands of old ones are not compared each time.
        is_longer = 0 < len(old) <= len(new) and new[len(old) - 1] == old[-1]
        gone, come = ((), new[len(old) :]) if is_longer else (old, new)
        for version in come:
            self._num_versions[version.digest] += 1
        for version in gone:
            _count_down(self._num_versions, version.digest)
        dropped = frozenset(v.digest for v in gone if not self.is_referenced(v.digest))
        for digest in dropped:
            self._stored.pop(digest, None)
        return dropped

    def _pinned_digest(self, record: AdapterRecord | None) -> str | None:
        if record is None or not record.is_pinned:
            return None
        current = _find_version(record, record.current)
        return None if current is None else current.digest

    # Checking --------------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        names = {n for n, r in self._records.items() if not r.is_deleted}
        if names != self._current.keys():
            raise RuntimeError(
                f"names without an entry, or the other way: {names ^ self._current.keys()}"
            )
        for name, entry in self._current.items():
            is_alive = self._entries.get(entry.key) is entry
            if not is_alive or entry.name != name or entry.version != self._records[name].current:
                raise RuntimeError(f"'{name}' is bound to '{entry.key}', which is not its version")
        for index in (self._by_tenant, self._by_digest):
            if sum(len(entries) for entries in index.values()) != len(self._entries):
                raise RuntimeError("an index of the entries is not complete")


def _find_version(record: AdapterRecord, version: int) -> VersionRecord | None:
    index = bisect.bisect_left(record.versions, version, key=lambda v: v.version)
    found = record.versions[index : index + 1]
    return found[0] if found and found[0].version == version else None


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
