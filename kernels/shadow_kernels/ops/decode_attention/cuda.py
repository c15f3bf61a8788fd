"""CUDA version of `decode_attention` (kernels/csrc/decode_attention.cu), bf16 and fp16.

On compute capability 9.0, where it has been measured. The library is built by `shadow_kernels.build`.
"""

from __future__ import annotations

from functools import cache

import torch

from shadow_kernels import library

HEAD_SIZES = (64, 128)
MAX_GROUP = 8
"""Query heads that share one of keys: the columns of a tensor-core product."""

TILE_TOKENS = 16
"""Tokens that a warp takes at once; a page holds whole tiles."""

NUM_ARRIVALS = 1024
"""Of `new_arrivals`: at least as many as blocks run at once (396 on 132 multiprocessors)."""

_ALIGNMENT, _OCTET = 16, 8  # bytes, and the numbers in them


@cache
def can_run_on(device_type: str) -> bool:
    """Whether the device is CUDA's, of compute capability 9.0, and the library has been built; loads it."""
    return library.can_run_on(device_type) and torch.cuda.get_device_capability() == (9, 0)


def has_kernel_of(dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_size: int) -> bool:
    """Whether the library has a kernel for these sizes."""
    return (
        dtype in (torch.bfloat16, torch.float16)
        and head_size in HEAD_SIZES
        and num_heads % num_kv_heads == 0
        and num_heads // num_kv_heads <= MAX_GROUP
        and num_kv_heads <= NUM_ARRIVALS
    )


def has_kernel_for(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, out: torch.Tensor
) -> bool:
    """Whether the library has a kernel for these sizes and this layout."""
    _, page_size, num_kv_heads, head_size = key_cache.shape
    return (
        has_kernel_of(query.dtype, query.shape[1], num_kv_heads, head_size)
        and page_size >= TILE_TOKENS
        and page_size.bit_count() == 1
        and all(
            tensor.dtype == query.dtype and _is_wide(tensor)
            for tensor in (query, key_cache, value_cache, out)
        )
        and query.stride(1) == out.stride(1) == head_size
        and key_cache.stride() == value_cache.stride()
    )


def new_arrivals(device: torch.device) -> torch.Tensor:
    """Return (NUM_ARRIVALS,) int32 zeros; see `shadow_kernels.decode_attention`."""
    return torch.zeros(NUM_ARRIVALS, dtype=torch.int32, device=device)


def decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    arrivals: torch.Tensor,
) -> None:
    """Run the operator; arguments as in `shadow_kernels.decode_attention`, already checked."""
    torch.ops.shadow_cuda.decode_attention(
        out, query, key_cache, value_cache, block_table, seq_lens, scale, arrivals
    )


def _is_wide(tensor: torch.Tensor) -> bool:
    """Whether a head's columns lie side by side and begin on 16 bytes wherever they are."""
    return (
        tensor.data_ptr() % _ALIGNMENT == 0
        and tensor.stride(-1) == 1
        and all(
            size == 1 or stride % _OCTET == 0
            for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        )
    )
