"""Adapter files on disk, found by digest: what was validated is what is loaded.

Runs in: API process (writes) | GPU worker (reads). Imports neither torch nor vllm.
"""

from shadow_runtime.store.hub import HubSource
from shadow_runtime.store.staging import CanonicalTarget, StagedArtifact
from shadow_runtime.store.store import ArtifactStore, StoredArtifact
from shadow_runtime.store.upload import UploadSession, UploadWriter

__all__ = [
    "ArtifactStore",
    "CanonicalTarget",
    "HubSource",
    "StagedArtifact",
    "StoredArtifact",
    "UploadSession",
    "UploadWriter",
]
