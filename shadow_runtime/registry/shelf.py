"""Which digests' bytes this server has on disk, and where.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from shadow_runtime.registry.binding import Bindings
from shadow_runtime.store import ArtifactStore, StagedArtifact, StoredArtifact
from shadow_runtime.types import AdapterManifest


class Shelf:
    """The store as the registry uses it: off the event loop, and what was found is noted in the bindings.

    Args:
        store: the bytes.
        bindings: told where they are.
        on_change: called with every digest whose bytes were looked for.
    """

    def __init__(
        self, store: ArtifactStore, bindings: Bindings, on_change: Callable[[str], None]
    ) -> None:
        self._store = store
        self._bindings = bindings
        self._on_change = on_change

    async def keep(
        self, staged: StagedArtifact, manifest: AdapterManifest, *, replace: bool = False
    ) -> tuple[AdapterManifest, StoredArtifact]:
        """Keep staged files for good; returns their manifest with its paths in the store. Raises StorageError.

        Args:
            staged: validated files.
            manifest: theirs.
            replace: what the store has under their digest is damaged.
        """
        stored = await asyncio.to_thread(
            self._store.commit, staged, manifest.digest, replace=replace
        )
        return self._note(manifest, stored), stored

    async def locate(self, manifest: AdapterManifest) -> AdapterManifest | None:
        """Return the manifest with this server's paths, None when the bytes are not here."""
        stored = await asyncio.to_thread(self._store.find, manifest.digest)
        localised = self._note(manifest, stored)
        return None if stored is None else localised

    async def look_for(self, digests: Iterable[str]) -> None:
        """Note where digests are that were not known to be here."""
        new = [digest for digest in digests if not self._bindings.is_stored(digest)]
        if not new:
            return
        found = await asyncio.to_thread(lambda: {d: self._store.find(d) for d in new})
        for digest, stored in found.items():
            self._bindings.note_stored(digest, stored)
            self._on_change(digest)

    async def collect(
        self, read_referenced: Callable[[], Collection[str]], min_age_seconds: float
    ) -> None:
        """Remove what no version of any name has, and no entry of this server; see `ArtifactStore.collect`.

        Args:
            read_referenced: asks the catalog; called right before the removal, so that its answer is never old.
            min_age_seconds: how long a digest has been without a version.
        """
        used = {entry.digest for entry in self._bindings.entries()}
        removed = await asyncio.to_thread(
            lambda: self._store.collect(used.union(read_referenced()), min_age_seconds)
        )
        for digest in removed:
            self._bindings.note_stored(digest, None)
            self._on_change(digest)

    def _note(self, manifest: AdapterManifest, stored: StoredArtifact | None) -> AdapterManifest:
        self._bindings.note_stored(manifest.digest, stored)
        self._on_change(manifest.digest)
        return self._bindings.localise(manifest)
