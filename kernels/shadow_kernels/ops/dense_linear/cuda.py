"""CUDA version of `dense_linear` for steps of up to 64 tokens (kernels/csrc/dense_linear.cu), bf16 and fp16.

Compute capability 9.0 alone: its products read both operands from shared memory. Everything else is torch's. The
library is built by `shadow_kernels.build`.
"""

from __future__ import annotations

from functools import cache

import torch

from shadow_kernels.library import can_run_on as can_run_on

MAX_TOKENS = 64
"""Of a step: the rows of a tensor-core product. With twice as many torch's product is as fast in a step."""

MIN_WEIGHTS = 1 << 20
"""Of a product: smaller ones take as long as their launch."""

_ALIGNMENT = 16  # bytes
_OCTET = 8  # numbers in them


def has_kernel_for(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the library has a kernel for this step and this layout."""
    return (
        0 < x.shape[0] <= MAX_TOKENS
        and _is_wide(x)
        and _is_wide(weight)
        and (bias is None or bias.is_contiguous())
        and max_tokens(*weight.shape, x.get_device()) >= x.shape[0]
    )


def is_worth_while(weight: torch.Tensor) -> bool:
    """Whether the kernel is faster than torch's product for this weight (`kernels/benchmarks/dense_linear.py`)."""
    return (
        _is_wide(weight)
        and weight.numel() >= MIN_WEIGHTS
        and max_tokens(*weight.shape, weight.get_device()) > 0
    )


@cache
def max_tokens(num_outputs: int, num_inputs: int, device: int) -> int:
    """Return up to how many tokens of a step have a kernel for a weight of this size; 0 for none."""
    answer: int = torch.ops.shadow_cuda.most_dense_tokens(num_outputs, num_inputs, device)
    return answer


def dense_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Run the operator; arguments as in `shadow_kernels.dense_linear`, already checked. Returns (T, N)."""
    out = x.new_empty(len(x), len(weight))
    torch.ops.shadow_cuda.dense_linear(out, x, weight, bias)
    return out


def _is_wide(matrix: torch.Tensor) -> bool:
    """Whether all rows start on 16 bytes and hold whole groups of eight numbers that lie side by side."""
    return (
        matrix.dtype in (torch.bfloat16, torch.float16)
        and matrix.data_ptr() % _ALIGNMENT == 0
        and matrix.shape[1] % _OCTET == 0
        and matrix.stride(1) == 1
        and matrix.stride(0) % _OCTET == 0
    )
