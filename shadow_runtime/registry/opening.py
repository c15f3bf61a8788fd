"""Opens a registry where a server keeps its state.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from shadow_runtime.catalog import Catalog
from shadow_runtime.errors import StorageError
from shadow_runtime.registry.entry import AdapterLoader, RegistrySettings, Validator
from shadow_runtime.registry.registry import AdapterRegistry
from shadow_runtime.store import ArtifactStore


def open_catalog(
    state_dir: Path, base_fingerprint: str, database_url: str | None = None
) -> Catalog:
    """Open the database at `database_url`, without one the SQLite file `registry.db` in `state_dir`. Blocking.

    Raises:
        ConfigError: the database belongs to another base model or to a newer release.
        CatalogError: it cannot be used.
        StorageError: `state_dir` cannot be made.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The state directory cannot be made: {error.strerror}.") from error
    url = database_url or f"sqlite:///{state_dir.absolute() / 'registry.db'}"
    return Catalog.open(url, base_fingerprint)


async def open_registry(
    loader: AdapterLoader,
    validator: Validator,
    *,
    state_dir: Path,
    base_fingerprint: str,
    database_url: str | None = None,
    settings: RegistrySettings | None = None,
) -> AdapterRegistry:
    """Open catalog and store of a server, and start its registry; closing that closes the catalog.

    Args:
        loader: the engine.
        validator: for publishes.
        state_dir: the server's own directory; the store is `store` in it.
        base_fingerprint: of the engine's base model.
        database_url: of a database that several servers share; None for a SQLite file in `state_dir`.
        settings: limits and times.

    Raises:
        ConfigError, CatalogError, StorageError: see `open_catalog`; the store cannot be written.
    """
    catalog = await asyncio.to_thread(open_catalog, state_dir, base_fingerprint, database_url)
    try:
        store = await asyncio.to_thread(ArtifactStore, state_dir / "store")
        registry = AdapterRegistry(loader, catalog, store, validator, settings)
        await registry.start()
    except BaseException:
        await asyncio.to_thread(catalog.close)
        raise
    return registry
