"""Sound adapters of a tiny base, and sandboxes that are started once for a module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from malicious_adapter import KINDS, build_originals
from sandbox_process import HostileSandbox
from shadow_runtime.artifact import load_adapter
from shadow_runtime.config import ShadowConfig, SlotClass
from shadow_runtime.types import BaseGeometry


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BaseGeometry]:
    """Return the directory of the originals and their base's shape."""
    root = tmp_path_factory.mktemp("originals")
    return root, build_originals(root)


@pytest.fixture(scope="session")
def originals(built: tuple[Path, BaseGeometry]) -> Path:
    """Return a directory with a tiny base and a sound adapter of each kind."""
    return built[0]


@pytest.fixture(scope="session")
def geometry(built: tuple[Path, BaseGeometry]) -> BaseGeometry:
    """Return the shape of the base in `originals`."""
    return built[1]


@pytest.fixture(scope="session")
def config(originals: Path, geometry: BaseGeometry) -> ShadowConfig:
    """Return a config with a slot class for each kind."""
    manifests = {kind: load_adapter(originals / kind, geometry).manifest for kind in KINDS}
    return ShadowConfig(tuple(SlotClass(kind, m.backbone, 2) for kind, m in manifests.items()))


@pytest.fixture(scope="session")
def limits() -> dict[str, Any]:
    """Return bounds that a hostile job reaches soon and an ordinary one never."""
    return {"max_memory_bytes": 256 << 20, "max_seconds": 5.0, "max_concurrent": 4}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(
    geometry: BaseGeometry, config: ShadowConfig, limits: dict[str, Any]
) -> AsyncIterator[HostileSandbox]:
    """Return a started sandbox; its ordinary jobs are the real ones."""
    validator = HostileSandbox(geometry, config, **limits)
    await validator.start()
    yield validator
    await validator.close()
