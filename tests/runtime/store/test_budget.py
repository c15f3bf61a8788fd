"""The files that the store takes are exactly those that a format reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shadow_runtime.artifact
from shadow_runtime.errors import AdapterFileError, AdapterLimitError
from shadow_runtime.store import ArtifactStore
from shadow_runtime.store.budget import ADAPTER_FILES

ARTIFACT = Path(shadow_runtime.artifact.__file__).parent


def test_names_are_those_that_the_readers_open() -> None:
    sources = [(ARTIFACT / f"{name}.py").read_text() for name in ("dialect_paper", "dialect_peft")]
    sources.append((ARTIFACT / "backbone_config.py").read_text())
    named = re.findall(r'^_?[A-Z_]*FILE = "([^"]+)"', "\n".join(sources), re.MULTILINE)
    assert sorted(named) == sorted(ADAPTER_FILES)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, max_file_bytes=5 << 20)
    store.check_sizes({"shadow_config.json": 2, "shadow_adapter.safetensors": 5 << 20})
    with pytest.raises(AdapterFileError, match="over the limit"):
        store.check_sizes({"shadow_adapter.safetensors": (5 << 20) + 1})
    with pytest.raises(AdapterFileError, match="no file"):
        store.check_sizes({"x.json": 1})
    with pytest.raises(AdapterLimitError, match="together"):
        store.check_sizes(
            dict.fromkeys(("model.safetensors", "shadow_adapter.safetensors"), 5 << 20)
        )
