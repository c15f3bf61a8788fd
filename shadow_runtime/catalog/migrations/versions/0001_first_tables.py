"""The first tables: base and revision, artifacts, names, versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("base_fingerprint", sa.String(71), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_meta"),
        sa.CheckConstraint("id = 1", name=op.f("ck_meta_one_row")),
    )
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("has_backbone_config", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_artifacts"),
    )
    op.create_table(
        "adapters",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("current_version", sa.Integer, nullable=False),
        sa.Column("last_version", sa.Integer, nullable=False),
        sa.Column("is_pinned", sa.Boolean, nullable=False),
        sa.Column("is_deleted", sa.Boolean, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_adapters"),
        sa.CheckConstraint(
            "current_version BETWEEN 1 AND last_version", name=op.f("ck_adapters_version")
        ),
    )
    op.create_index("ix_adapters_revision", "adapters", ["revision"])
    op.create_table(
        "versions",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("created_at_unix", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "version", name="pk_versions"),
        sa.ForeignKeyConstraint(["digest"], ["artifacts.digest"], name="fk_versions_artifacts"),
        sa.ForeignKeyConstraint(
            ["tenant", "name"], ["adapters.tenant", "adapters.name"], name="fk_versions_adapters"
        ),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])


def downgrade() -> None:
    """Drop them all."""
    for table in ("versions", "adapters", "artifacts", "meta"):
        op.drop_table(table)
