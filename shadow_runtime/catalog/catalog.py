"""The catalog: what every name of every tenant is bound to, and was.

Runs in: API process, on any thread.
"""

from __future__ import annotations

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError

from shadow_runtime.catalog import reader, writer
from shadow_runtime.catalog.database import Database
from shadow_runtime.catalog.migrations import upgrade
from shadow_runtime.catalog.postgresql import PostgresDatabase
from shadow_runtime.catalog.record import (
    AdapterRecord,
    ArtifactRecord,
    CatalogChanges,
    CatalogQuota,
    CatalogUsage,
    Published,
    VersionRecord,
)
from shadow_runtime.catalog.sqlite import SqliteDatabase
from shadow_runtime.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    CatalogError,
    ConfigError,
    QuotaError,
)
from shadow_runtime.types import AdapterName

_KINDS: dict[str, type[SqliteDatabase] | type[PostgresDatabase]] = {
    "sqlite": SqliteDatabase,
    "postgresql": PostgresDatabase,
    "postgres": PostgresDatabase,
}


class Catalog:
    """Names, versions and digests in a database; every server that opens it sees the same.

    Invariants:
        Versions of a name count 1, 2, 3, ... in the order of their commits and are never given twice, also after the
        name was deleted. A name that is not deleted has its current version, and every version has its artifact.
        Revisions grow by one with each change, in the order of commits. Names and tenants are what
        `is_adapter_name` and `is_tenant_name` allow; the caller has checked that.

    Ownership: any thread of any number of processes; writers take turns, readers wait for nobody.

    Failure: a method that raises has changed nothing, with one exception: CatalogError for a connection that was lost
    during a commit. Every method raises CatalogError when the database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, base_fingerprint: str) -> Catalog:
        """Connect, and bring the schema up to date.

        Args:
            url: `sqlite:///<path>` or `postgresql://user:password@host/database`.
            base_fingerprint: of the base model that this server's adapters are for.

        Raises:
            ConfigError: the URL is not understood; the database belongs to another base model or to a newer release.
            CatalogError: the database cannot be used.
        """
        database = _connect(url)
        try:
            with database.migrate() as connection:
                upgrade(connection)
                _bind_base(connection, base_fingerprint)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def publish(
        self,
        name: AdapterName,
        artifact: ArtifactRecord,
        *,
        source: str,
        can_replace: bool = True,
        quota: CatalogQuota | None = None,
        max_versions: int | None = None,
    ) -> Published:
        """Bind `name` to an artifact, as its next version; nothing changes when it is bound to that digest already.

        Args:
            name: new, known or deleted.
            artifact: what was validated; kept as it is when the database has that digest from another publish.
            source: where the bytes came from, for people.
            can_replace: whether a name that has other bytes may get these.
            quota: what the tenant may have; checked in the same transaction, before old versions are forgotten.
            max_versions: how many of the newest versions stay, 2 or more; None keeps all.

        Raises:
            AdapterExistsError: `name` has other bytes and `can_replace` is False.
            QuotaError: the tenant would have more than the quota.
        """
        with self._database.write() as connection:
            revision = writer.lock_revision(connection)
            unchanged = _check_publish(connection, name, artifact, can_replace, quota)
            if unchanged is not None:
                return unchanged
            writer.add_artifact(connection, artifact)
            writer.add_version(
                connection,
                name,
                artifact.digest,
                "publish",
                source,
                revision=revision + 1,
                max_versions=max_versions,
            )
            return _published(connection, name)

    def check_publish(
        self,
        name: AdapterName,
        artifact: ArtifactRecord,
        *,
        can_replace: bool = True,
        quota: CatalogQuota | None = None,
    ) -> None:
        """Raise what `publish` would raise now; what it does later is decided then.

        Raises:
            AdapterExistsError, QuotaError: as there.
        """
        with self._database.read() as connection:
            _check_publish(connection, name, artifact, can_replace, quota)

    def rollback(
        self, name: AdapterName, version: int | None = None, *, max_versions: int | None = None
    ) -> Published:
        """Bind `name` to the bytes of an earlier version, as its next version.

        Args:
            name: not deleted.
            version: whose bytes; None for the newest before the current one with other bytes than that.
            max_versions: as in `publish`.

        Raises:
            AdapterNotFoundError: no such name or version, or no earlier one with other bytes.
        """
        with self._database.write() as connection:
            revision = writer.lock_revision(connection)
            record = _get_adapter(connection, name)
            target = _rollback_target(record, version)
            if target.digest == _current(record).digest:
                return Published(record, _current(record), is_new=False)
            writer.add_version(
                connection,
                name,
                target.digest,
                "rollback",
                target.source,
                revision=revision + 1,
                max_versions=max_versions,
            )
            return _published(connection, name)

    def delete(self, name: AdapterName) -> AdapterRecord:
        """Forget all versions of `name`; what is left tells the other servers that it is gone.

        Raises:
            AdapterNotFoundError: no such name.
        """
        with self._database.write() as connection:
            revision = writer.lock_revision(connection)
            _get_adapter(connection, name)
            writer.delete_adapter(connection, name, revision=revision + 1)
            return _reread(connection, name)

    def set_pinned(self, name: AdapterName, is_pinned: bool) -> AdapterRecord:
        """Say whether the current version of `name` is to stay resident, whichever that is.

        Raises:
            AdapterNotFoundError: no such name.
        """
        with self._database.write() as connection:
            revision = writer.lock_revision(connection)
            record = _get_adapter(connection, name)
            if record.is_pinned == is_pinned:
                return record
            writer.set_pinned(connection, name, is_pinned, revision=revision + 1)
            return _reread(connection, name)

    def find(self, name: AdapterName) -> AdapterRecord | None:
        """Return the name with its versions, None when it does not exist or is deleted."""
        with self._database.read() as connection:
            record = reader.find_adapter(connection, name)
        return None if record is None or record.is_deleted else record

    def changes_since(self, revision: int) -> CatalogChanges:
        """Return every name that changed after `revision`, in the order of their changes; 0 for all names."""
        with self._database.read() as connection:
            now = reader.read_revision(connection)
            if revision == now:
                return CatalogChanges(now, ())
            # The database is older than what the caller has seen of it: it was restored from a copy.
            since = revision if revision < now else 0
            return CatalogChanges(now, reader.read_changed(connection, since))

    def referenced_digests(self) -> frozenset[str]:
        """Return the digests that any version of any name has: their bytes are needed."""
        with self._database.read() as connection:
            return reader.read_digests(connection)

    def usage(self, tenant: str) -> CatalogUsage:
        """Return what a tenant has: its names, and the bytes of its distinct digests over all versions."""
        with self._database.read() as connection:
            return reader.read_usage(connection, tenant)


def _connect(url: str) -> Database:
    try:
        parsed = make_url(url)
        kind = _KINDS[parsed.get_backend_name()]
    except (ArgumentError, ValueError, KeyError):
        # The text is not repeated: it may hold a password.
        raise ConfigError(
            "the registry's database is given as sqlite:///<path> or postgresql://<user>@<host>/<database>"
        ) from None
    return kind(parsed)


def _bind_base(connection: Connection, base_fingerprint: str) -> None:
    known = reader.find_base_fingerprint(connection)
    if known is None:
        writer.set_base_fingerprint(connection, base_fingerprint)
    elif known != base_fingerprint:
        raise ConfigError(
            f"the registry's database belongs to another base model ({known}, this server's is"
            f" {base_fingerprint}); each base model needs a database of its own"
        )


def _get_adapter(connection: Connection, name: AdapterName) -> AdapterRecord:
    record = reader.find_adapter(connection, name)
    if record is None or record.is_deleted:
        raise AdapterNotFoundError(f"The adapter '{name.display}' does not exist.")
    return record


def _reread(connection: Connection, name: AdapterName) -> AdapterRecord:
    record = reader.find_adapter(connection, name)
    if record is None:
        raise CatalogError("The registry's database lost a row that was just written.")
    return record


def _current(record: AdapterRecord) -> VersionRecord:
    return next(v for v in record.versions if v.version == record.current)


def _check_publish(
    connection: Connection,
    name: AdapterName,
    artifact: ArtifactRecord,
    can_replace: bool,
    quota: CatalogQuota | None,
) -> Published | None:
    """Return what a publish leaves as it is, None when it would change something; raises when it may not."""
    record = reader.find_adapter(connection, name)
    if record is not None and not record.is_deleted:
        current = _current(record)
        if current.digest == artifact.digest:
            return Published(record, current, is_new=False)
        if not can_replace:
            raise AdapterExistsError(f"The adapter '{name.display}' has other bytes.")
    if quota is not None:
        is_new_name = record is None or record.is_deleted
        _check_quota(connection, name.tenant, artifact, quota, is_new_name=is_new_name)
    return None


def _published(connection: Connection, name: AdapterName) -> Published:
    record = _get_adapter(connection, name)
    return Published(record, _current(record), is_new=True)


def _rollback_target(record: AdapterRecord, version: int | None) -> VersionRecord:
    if version is not None:
        for known in record.versions:
            if known.version == version:
                return known
        raise AdapterNotFoundError(f"The adapter '{record.name.display}' has no version {version}.")
    # Neighbours never have the same bytes: neither a publish nor a rollback makes such a version.
    if len(record.versions) < 2:
        raise AdapterNotFoundError(
            f"The adapter '{record.name.display}' has no earlier version with other bytes."
        )
    return record.versions[-2]


def _check_quota(
    connection: Connection,
    tenant: str,
    artifact: ArtifactRecord,
    quota: CatalogQuota,
    *,
    is_new_name: bool,
) -> None:
    usage = reader.read_usage(connection, tenant)
    if is_new_name and quota.max_adapters is not None and usage.num_adapters >= quota.max_adapters:
        raise QuotaError(
            f"All {quota.max_adapters} adapters of this tenant's quota are in use; delete one first."
        )
    if quota.max_stored_bytes is None or reader.has_digest(connection, tenant, artifact.digest):
        return
    if usage.stored_bytes + artifact.stored_bytes > quota.max_stored_bytes:
        raise QuotaError(
            f"This tenant has {usage.stored_bytes} of {quota.max_stored_bytes} bytes in use; the adapter's"
            f" {artifact.stored_bytes} bytes are too many."
        )
