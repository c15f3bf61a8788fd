"""A tiny base with one adapter of each format, built once, and copies to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from malicious_adapter import build_originals
from reference_adapters import copy_adapter
from shadow_runtime.artifact import base_geometry
from shadow_runtime.types import BaseGeometry


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a Llama base and a sound adapter of each kind."""
    root = tmp_path_factory.mktemp("originals")
    build_originals(root)
    return root


@pytest.fixture(scope="session")
def geometry(originals: Path) -> BaseGeometry:
    """Return the shape of the base in `originals`."""
    return base_geometry(AutoConfig.from_pretrained(originals / "base"))


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies the adapter of a kind for a test to damage."""
    return lambda kind: copy_adapter(originals / kind, tmp_path / "adapter")
