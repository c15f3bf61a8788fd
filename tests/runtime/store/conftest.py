"""A store and a directory that looks like an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadow_runtime.store import ArtifactStore

CONFIG, TENSORS = "shadow_config.json", "shadow_adapter.safetensors"


def write_adapter(directory: Path, tensors: bytes = b"tensors", config: bytes = b"{}") -> Path:
    """Write the two files of an adapter in the paper format and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_bytes(config)
    (directory / TENSORS).write_bytes(tensors)
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the directory of an adapter."""
    return write_adapter(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Return an empty store that takes files of up to a MiB."""
    return ArtifactStore(tmp_path / "store", max_file_bytes=1 << 20)
