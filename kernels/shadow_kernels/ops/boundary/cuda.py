"""CUDA version of `boundary_` and `boundary_rms_norm_`: one cluster launch (kernels/csrc), from capability 9.0 on.

Below 9.0, and for the rare shape whose weights do not fit a cluster's shared memory, the same code runs as three
launches with scratch. Gates over 16 and ranks over 64 have no kernel. The library is built by `shadow_kernels.build`.
"""

from __future__ import annotations

from functools import cache

import torch

from shadow_kernels.library import can_run_on as can_run_on
from shadow_kernels.ops.boundary import BoundaryWeights
from shadow_kernels.segments import Grouping, max_tiles

_DATA_TYPES = (torch.bfloat16, torch.float16, torch.float32)  # in the order of boundary.h


def has_kernel_for(hidden: torch.Tensor, weights: BoundaryWeights) -> bool:
    """Whether the library has a kernel for these sizes on hidden's device."""
    return _has_kernel(*_sizes(hidden, weights))


def boundary_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
) -> None:
    """Run the operator; arguments as in `shadow_kernels.boundary_`, already checked. Mutates hidden and state."""
    num_tiles = max_tiles(len(hidden), len(grouping.slot_starts) - 1)
    torch.ops.shadow_cuda.boundary_(
        hidden, residual, state, *grouping[:4], *weights, num_tiles, None, 0.0
    )


def has_norm_for(dtype: torch.dtype, hidden_size: int) -> bool:
    """Whether the library has the RMS norm for rows of this kind that lie on 16 bytes."""
    most: int = torch.ops.shadow_cuda.most_rms_columns()
    return dtype in _DATA_TYPES and hidden_size % 8 == 0 and hidden_size <= most


def takes_norm(hidden: torch.Tensor, residual: torch.Tensor, rms_weight: torch.Tensor) -> bool:
    """Whether the library's norm takes these tensors, which are checked: rows on 16 bytes."""
    rows = (hidden, residual)
    return (
        has_norm_for(hidden.dtype, hidden.shape[1])
        and all(tensor.data_ptr() % 16 == 0 for tensor in (*rows, rms_weight))
        and all(tensor.stride(0) % 8 == 0 for tensor in rows)
    )


def boundary_rms_norm_(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
    rms_weight: torch.Tensor,
    rms_eps: float,
) -> None:
    """Run the operator; arguments as in `shadow_kernels.boundary_rms_norm_`, already checked."""
    num_tiles = max_tiles(len(hidden), len(grouping.slot_starts) - 1)
    torch.ops.shadow_cuda.boundary_(
        hidden, residual, state, *grouping[:4], *weights, num_tiles, rms_weight, rms_eps
    )


def add_rms_norm_(
    hidden: torch.Tensor, residual: torch.Tensor, rms_weight: torch.Tensor, rms_eps: float
) -> None:
    """Run the norm alone: residual becomes hidden + residual, hidden its norm. Rows on 16 bytes."""
    torch.ops.shadow_cuda.add_rms_norm_(hidden, residual, rms_weight, rms_eps)


def _sizes(
    hidden: torch.Tensor, weights: BoundaryWeights
) -> tuple[torch.dtype, int, int, int, int]:
    return (
        hidden.dtype,
        hidden.shape[1],
        weights.update_in.shape[2],
        weights.down.shape[1],
        hidden.get_device(),
    )


@cache
def _has_kernel(
    dtype: torch.dtype, hidden_size: int, gate_size: int, rank: int, device: int
) -> bool:
    data_type = _DATA_TYPES.index(dtype)
    answer: bool = torch.ops.shadow_cuda.has_boundary(
        data_type, hidden_size, gate_size, rank, device
    )
    return answer
