"""Changes of the tables, inside a transaction of the caller that has locked the revision.

Runs in: API process.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from shadow_runtime.catalog.record import ArtifactRecord, Origin
from shadow_runtime.catalog.schema import adapters, artifacts, meta, versions
from shadow_runtime.types import AdapterName

_MAX_SOURCE_LENGTH = 500


def lock_revision(connection: Connection) -> int:
    """Wait until every other writer has committed, keep them out until this transaction ends; return the revision.

    SQLite has the lock already, since its writers begin with it.
    """
    return int(connection.execute(select(meta.c.revision).with_for_update()).scalar_one())


def set_base_fingerprint(connection: Connection, base_fingerprint: str) -> None:
    """Say which base a new database belongs to."""
    connection.execute(insert(meta).values(id=1, base_fingerprint=base_fingerprint, revision=0))


def add_artifact(connection: Connection, artifact: ArtifactRecord) -> None:
    """Keep an artifact, unless the database has its digest."""
    known = select(artifacts.c.digest).where(artifacts.c.digest == artifact.digest)
    if connection.execute(known).first() is None:
        connection.execute(
            insert(artifacts).values(
                digest=artifact.digest,
                manifest=artifact.manifest.to_dict(),
                stored_bytes=artifact.stored_bytes,
                has_backbone_config=artifact.has_backbone_config,
            )
        )


def add_version(
    connection: Connection,
    name: AdapterName,
    digest: str,
    origin: Origin,
    source: str,
    *,
    revision: int,
    max_versions: int | None = None,
) -> None:
    """Bind a name, new, known or deleted, to a digest as its next version, and forget all but the newest versions."""
    last = connection.execute(select(adapters.c.last_version).where(_is(name))).scalar_one_or_none()
    version = 1 if last is None else last + 1
    binding = {
        "current_version": version,
        "last_version": version,
        "is_deleted": False,
        "revision": revision,
    }
    if last is None:
        connection.execute(
            insert(adapters).values(tenant=name.tenant, name=name.name, is_pinned=False, **binding)
        )
    else:
        connection.execute(update(adapters).where(_is(name)).values(binding))
    connection.execute(
        insert(versions).values(
            tenant=name.tenant,
            name=name.name,
            version=version,
            digest=digest,
            origin=origin,
            source=_printable(source),
            created_at_unix=int(datetime.now(UTC).timestamp()),
        )
    )
    if max_versions is not None:
        _forget_versions(connection, name, last_version=version - max_versions)
    _set_revision(connection, revision)


def delete_adapter(connection: Connection, name: AdapterName, *, revision: int) -> None:
    """Forget all versions of a name."""
    _forget_versions(connection, name)
    _set_adapter(connection, name, revision, is_deleted=True, is_pinned=False)


def set_pinned(
    connection: Connection, name: AdapterName, is_pinned: bool, *, revision: int
) -> None:
    """Pin a name or unpin it."""
    _set_adapter(connection, name, revision, is_pinned=is_pinned)


def _forget_versions(
    connection: Connection, name: AdapterName, last_version: int | None = None
) -> None:
    """Forget versions up to the last one named, and the artifacts that no version of any name has then."""
    old = and_(versions.c.tenant == name.tenant, versions.c.name == name.name)
    if last_version is not None:
        old = and_(old, versions.c.version <= last_version)
    digests = connection.execute(select(versions.c.digest).where(old).distinct()).scalars().all()
    if not digests:
        return
    connection.execute(delete(versions).where(old))
    connection.execute(
        delete(artifacts).where(
            artifacts.c.digest.in_(digests), artifacts.c.digest.not_in(select(versions.c.digest))
        )
    )


def _set_adapter(connection: Connection, name: AdapterName, revision: int, **flags: bool) -> None:
    connection.execute(update(adapters).where(_is(name)).values(revision=revision, **flags))
    _set_revision(connection, revision)


def _set_revision(connection: Connection, revision: int) -> None:
    connection.execute(update(meta).values(revision=revision))


def _is(name: AdapterName) -> ColumnElement[bool]:
    return and_(adapters.c.tenant == name.tenant, adapters.c.name == name.name)


def _printable(source: str) -> str:
    """Return one line that every database takes: no NUL, no half of a surrogate pair."""
    line = "".join(c if c.isprintable() else "?" for c in source)
    return line[:_MAX_SOURCE_LENGTH]
