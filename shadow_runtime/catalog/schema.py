"""The tables. A change here needs a migration beside it; a test compares the two.

Runs in: API process.

    meta       one row: the base model that the adapters are for, and the revision, which every change raises by one
    artifacts  one row per digest that any version names
    adapters   one row per name, deleted ones too: version numbers are never given twice
    versions   one row per version of a name that is not deleted
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

meta = Table(
    "meta",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("base_fingerprint", String(71), nullable=False),
    Column("revision", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

artifacts = Table(
    "artifacts",
    METADATA,
    Column("digest", String(71), primary_key=True),
    Column("manifest", JSON, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("has_backbone_config", Boolean, nullable=False),
)

adapters = Table(
    "adapters",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("current_version", Integer, nullable=False),
    Column("last_version", Integer, nullable=False),
    Column("is_pinned", Boolean, nullable=False),
    Column("is_deleted", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    CheckConstraint("current_version BETWEEN 1 AND last_version", name="version"),
    Index("ix_adapters_revision", "revision"),
)

versions = Table(
    "versions",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), ForeignKey(artifacts.c.digest), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("source", Text, nullable=False),
    Column("created_at_unix", BigInteger, nullable=False),
    ForeignKeyConstraint(["tenant", "name"], [adapters.c.tenant, adapters.c.name]),
    Index("ix_versions_digest", "digest"),
)
