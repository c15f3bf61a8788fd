"""Whose norm the boundary takes, and what the layer's norm does then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm import envs
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

from compilation_config import make_compiling_config
from shadow_kernels.testing import (
    BoundaryNormCase,
    assert_same_bits,
    make_boundary_norm_case,
    popularity_slots,
)
from shadow_runtime.vllm_bridge.executor import ShadowExecutor
from shadow_runtime.vllm_bridge.models import CrossingNorm, gives_norm_away

HIDDEN_SIZE = 256


@pytest.fixture
def norm() -> RMSNorm:
    with set_current_vllm_config(VllmConfig()):
        return RMSNorm(HIDDEN_SIZE, eps=0.1)


def layer_of(norm: nn.Module | None) -> nn.Module:
    layer = nn.Module()
    if norm is not None:
        layer.input_layernorm = norm
    return layer


@pytest.fixture
def has_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadow_kernels.has_fast_rms_norm", lambda *_: True)


@pytest.mark.usefixtures("has_kernel")
def test_an_engine_that_compiles_gives_its_norm_away(norm: RMSNorm) -> None:
    assert gives_norm_away(layer_of(norm), make_compiling_config())
    assert gives_norm_away(
        layer_of(norm),
        make_compiling_config(
            quant_config=object(), compilation_config__pass_config__fuse_norm_quant=False
        ),
    )


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize(
    "changes",
    [
        {"compilation_config__mode": CompilationMode.NONE},
        {"compilation_config__backend": "eager"},
        {"kernel_config__ir_op_priority__fused_add_rms_norm": ["vllm_c", "native"]},
        {"kernel_config__ir_op_priority__fused_add_rms_norm": []},
        {"quant_config": object()},
        {"model_config__dtype": torch.bfloat16},
    ],
)
def test_a_norm_that_is_not_the_compiler_s_stays(norm: RMSNorm, changes: dict[str, Any]) -> None:
    assert not gives_norm_away(layer_of(norm), make_compiling_config(**changes))


@pytest.mark.usefixtures("has_kernel")
def test_other_norms_stay(norm: RMSNorm) -> None:
    with set_current_vllm_config(VllmConfig()):
        others = [
            None,
            nn.LayerNorm(HIDDEN_SIZE),
            GemmaRMSNorm(HIDDEN_SIZE),
            RMSNorm(HIDDEN_SIZE, has_weight=False),
            RMSNorm(HIDDEN_SIZE, var_hidden_size=128),
        ]
    for other in others:
        assert not gives_norm_away(layer_of(other), make_compiling_config()), other


@pytest.mark.usefixtures("has_kernel")
def test_a_batch_invariant_engine_keeps_its_norm(
    norm: RMSNorm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True, raising=False)
    assert not gives_norm_away(layer_of(norm), make_compiling_config())


def test_a_device_without_a_kernel_for_it_keeps_its_norm(norm: RMSNorm) -> None:
    assert not gives_norm_away(layer_of(norm), make_compiling_config())


@pytest.fixture
def case() -> BoundaryNormCase:
    slots = popularity_slots("base_mixed", 21, 7, seed=1)
    return make_boundary_norm_case(slots, num_adapter_slots=7, hidden_size=HIDDEN_SIZE)


def crossing(norm: RMSNorm, case: BoundaryNormCase, state: torch.Tensor) -> CrossingNorm:
    executor = SimpleNamespace(state=state, segments=case.boundary.segments)
    executor.cross_into_norm = ShadowExecutor.cross_into_norm.__get__(executor)
    norm.weight.data.copy_(case.rms_weight)
    norm.__class__ = CrossingNorm
    norm._shadow = (executor, case.boundary.weights)  # type: ignore[assignment]
    return norm  # type: ignore[return-value]


def test_it_crosses_the_boundary_and_returns_what_the_stock_norm_would(
    norm: RMSNorm, case: BoundaryNormCase
) -> None:
    hidden, residual, state = case.guarded_tensors()
    result = crossing(norm, case, state)(hidden, residual)
    assert result[0] is hidden
    assert result[1] is residual
    case.assert_correct((*result, state))


def test_without_a_residual_it_is_the_stock_norm(norm: RMSNorm, case: BoundaryNormCase) -> None:
    hidden, _, state = case.guarded_tensors()
    norm.weight.data.copy_(case.rms_weight)
    expected = norm(hidden)
    before = state.clone()
    assert_same_bits(crossing(norm, case, state)(hidden), expected, "the norm")
    assert_same_bits(state, before, "state")
    assert np.isfinite(expected.detach().numpy()).all()
