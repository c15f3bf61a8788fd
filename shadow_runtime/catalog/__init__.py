"""The registry's memory: names, versions and digests in SQL, shared by every server of one database.

Runs in: API process. Imports neither torch nor vllm.
"""

from shadow_runtime.catalog.catalog import Catalog
from shadow_runtime.catalog.fingerprint import base_fingerprint
from shadow_runtime.catalog.record import (
    AdapterRecord,
    ArtifactRecord,
    CatalogChanges,
    CatalogQuota,
    CatalogUsage,
    Published,
    VersionRecord,
)

__all__ = [
    "AdapterRecord",
    "ArtifactRecord",
    "Catalog",
    "CatalogChanges",
    "CatalogQuota",
    "CatalogUsage",
    "Published",
    "VersionRecord",
    "base_fingerprint",
]
