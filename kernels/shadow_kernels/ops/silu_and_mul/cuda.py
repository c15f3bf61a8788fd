"""CUDA version of `silu_and_mul` (kernels/csrc/silu_and_mul.cu). The library is built by `shadow_kernels.build`."""

from __future__ import annotations

import torch

from shadow_kernels.library import can_run_on as can_run_on

_OCTET, _ALIGNMENT = 8, 16  # columns that a thread takes; bytes


def has_kernel_for(x: torch.Tensor) -> bool:
    """Whether both halves of all rows start on 16 bytes and are whole groups of eight columns."""
    return (
        x.shape[1] % (2 * _OCTET) == 0
        and x.stride(1) == 1
        and x.stride(0) % _OCTET == 0
        and x.data_ptr() % _ALIGNMENT == 0
    )


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Run the operator; arguments as in `shadow_kernels.silu_and_mul`, already checked. Returns (T, M)."""
    out = x.new_empty(len(x), x.shape[1] // 2)
    torch.ops.shadow_cuda.silu_and_mul(out, x)
    return out
