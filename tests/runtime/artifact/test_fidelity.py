"""Every family and kind: the canonical form computes what the reference packages compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from canonical_forward import canonical_logits
from reference_adapters import (
    FAMILIES,
    KINDS,
    base_logits,
    build_adapter,
    build_base,
    reference_logits,
)
from transformers import AutoConfig

from shadow_runtime.artifact import base_geometry, load_adapter

TOKEN_IDS = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(1)).tolist()
TOLERANCE = 1e-4
MARGIN = 0.5


def worst_row(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of log probabilities in any row."""
    return (got.log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()


def check(kind: str, base: Path, adapter: Path) -> None:
    """Compare canonical and reference logits, and both with the base."""
    geometry = base_geometry(AutoConfig.from_pretrained(base))
    expected = reference_logits(kind, base, adapter, TOKEN_IDS)
    got = canonical_logits(base, load_adapter(adapter, geometry), TOKEN_IDS)
    assert worst_row(got, expected) < TOLERANCE
    assert worst_row(expected, base_logits(base, TOKEN_IDS)) > MARGIN


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny base of each family."""
    return build_base(request.param, tmp_path_factory.mktemp(request.param), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_canonical_form_computes_what_the_package_computes(
    base: Path, kind: str, tmp_path: Path
) -> None:
    check(kind, base, build_adapter(kind, base, tmp_path / "adapter", seed=5))
