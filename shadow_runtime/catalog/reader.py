"""Rows to records, inside a transaction of the caller.

Runs in: API process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from shadow_runtime.catalog.record import (
    AdapterRecord,
    ArtifactRecord,
    CatalogUsage,
    VersionRecord,
)
from shadow_runtime.catalog.schema import adapters, artifacts, meta, versions
from shadow_runtime.types import AdapterManifest, AdapterName

_SAME_NAME = and_(versions.c.tenant == adapters.c.tenant, versions.c.name == adapters.c.name)


def find_base_fingerprint(connection: Connection) -> str | None:
    """Return the base that the database belongs to, None when it is new."""
    return connection.execute(select(meta.c.base_fingerprint)).scalar_one_or_none()


def read_revision(connection: Connection) -> int:
    """Return the revision of the last change, 0 before the first."""
    return int(connection.execute(select(meta.c.revision)).scalar_one())


def find_adapter(connection: Connection, name: AdapterName) -> AdapterRecord | None:
    """Return the record of a name, deleted or not; None when nobody ever published it."""
    found = _read_adapters(
        connection, and_(adapters.c.tenant == name.tenant, adapters.c.name == name.name)
    )
    return found[0] if found else None


def read_changed(connection: Connection, revision: int) -> tuple[AdapterRecord, ...]:
    """Return the records that changed after a revision, in the order of their changes."""
    return _read_adapters(connection, adapters.c.revision > revision)


def read_digests(connection: Connection) -> frozenset[str]:
    """Return the digests of all versions."""
    return frozenset(connection.execute(select(versions.c.digest).distinct()).scalars())


def has_digest(connection: Connection, tenant: str, digest: str) -> bool:
    """Return whether any version of a tenant has a digest."""
    mine = select(versions.c.version).where(
        versions.c.tenant == tenant, versions.c.digest == digest
    )
    return connection.execute(mine.limit(1)).first() is not None


def read_usage(connection: Connection, tenant: str) -> CatalogUsage:
    """Return a tenant's names, and the bytes of its distinct digests."""
    names = select(func.count()).where(adapters.c.tenant == tenant, ~adapters.c.is_deleted)
    digests = select(versions.c.digest).where(versions.c.tenant == tenant)
    size = select(func.coalesce(func.sum(artifacts.c.stored_bytes), 0)).where(
        artifacts.c.digest.in_(digests)
    )
    return CatalogUsage(
        connection.execute(names).scalar_one(), int(connection.execute(size).scalar_one())
    )


def _read_adapters(
    connection: Connection, condition: ColumnElement[bool]
) -> tuple[AdapterRecord, ...]:
    rows = connection.execute(select(adapters).where(condition).order_by(adapters.c.revision)).all()
    history = _read_versions(connection, condition) if rows else {}
    return tuple(_record(row, history.get((row.tenant, row.name), ())) for row in rows)


def _record(row: Row[Any], history: Iterable[VersionRecord]) -> AdapterRecord:
    return AdapterRecord(
        name=AdapterName(row.tenant, row.name),
        current=row.current_version,
        versions=tuple(history),
        is_pinned=row.is_pinned,
        is_deleted=row.is_deleted,
        revision=row.revision,
    )


def _read_versions(
    connection: Connection, condition: ColumnElement[bool]
) -> dict[tuple[str, str], list[VersionRecord]]:
    by_digest = _read_artifacts(connection, condition)
    history = defaultdict(list)
    query = select(versions).join(adapters, _SAME_NAME).where(condition)
    for row in connection.execute(query.order_by(versions.c.version)):
        history[row.tenant, row.name].append(
            VersionRecord(
                name=AdapterName(row.tenant, row.name),
                version=row.version,
                artifact=by_digest[row.digest],
                origin=row.origin,
                source=row.source,
                created_at_unix=row.created_at_unix,
            )
        )
    return history


def _read_artifacts(
    connection: Connection, condition: ColumnElement[bool]
) -> dict[str, ArtifactRecord]:
    digests = select(versions.c.digest).join(adapters, _SAME_NAME).where(condition)
    return {
        row.digest: ArtifactRecord(
            manifest=AdapterManifest.from_dict(row.manifest),
            stored_bytes=row.stored_bytes,
            has_backbone_config=row.has_backbone_config,
        )
        for row in connection.execute(select(artifacts).where(artifacts.c.digest.in_(digests)))
    }
