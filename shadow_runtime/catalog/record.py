"""The rows of the registry's database, as values.

Runs in: API process. Imports neither torch nor vllm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shadow_runtime.types import AdapterManifest, AdapterName

Origin = Literal["publish", "rollback"]


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """One set of validated bytes.

    Attributes:
        manifest: what it is; `manifest.digest` is its identity and `manifest.path` where the server that published
            it keeps it (another server has its own store path).
        stored_bytes: bytes of its files in the store; what a tenant's quota counts.
        has_backbone_config: the operator gave an explicit backbone's config, which the store keeps beside it.
    """

    manifest: AdapterManifest
    stored_bytes: int
    has_backbone_config: bool = False

    @property
    def digest(self) -> str:
        """`sha256:<64 hex digits>`."""
        return self.manifest.digest


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of a name. Versions of a name count 1, 2, 3, ... and are never given twice.

    Attributes:
        name: the adapter's name.
        version: its number.
        artifact: the bytes.
        origin: published, or bound again by a rollback.
        source: where the bytes came from, one printable line for people (`directory legal`, `upload`, `hub org/x@rev`).
        created_at_unix: seconds since the epoch.
    """

    name: AdapterName
    version: int
    artifact: ArtifactRecord
    origin: Origin
    source: str
    created_at_unix: int

    @property
    def digest(self) -> str:
        """`sha256:<64 hex digits>`."""
        return self.artifact.digest


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One name with its versions.

    Attributes:
        name: the adapter's name.
        current: number of the version that answers.
        versions: all of them, oldest first; `current` is among them. Empty when the name is deleted.
        is_pinned: its current version is kept resident.
        is_deleted: the name answers nothing any more.
        revision: the catalog's revision at its last change.
    """

    name: AdapterName
    current: int
    versions: tuple[VersionRecord, ...]
    is_pinned: bool
    is_deleted: bool
    revision: int


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """What changed after a revision.

    Attributes:
        revision: the catalog's revision now; ask for what comes after it next time.
        adapters: every record whose revision is newer, deleted ones included.
    """

    revision: int
    adapters: tuple[AdapterRecord, ...]


@dataclass(frozen=True, slots=True)
class CatalogQuota:
    """Checked in the transaction that publishes; None is no limit.

    Attributes:
        max_adapters: names that a tenant may have.
        max_stored_bytes: bytes of a tenant's distinct digests over all versions.
    """

    max_adapters: int | None = None
    max_stored_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CatalogUsage:
    """What a tenant has: names, and bytes of its distinct digests."""

    num_adapters: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish or rollback did.

    Attributes:
        record: the name as it is now.
        version: the version that answers now.
        is_new: False when the current version already had these bytes; nothing was changed then.
    """

    record: AdapterRecord
    version: VersionRecord
    is_new: bool
