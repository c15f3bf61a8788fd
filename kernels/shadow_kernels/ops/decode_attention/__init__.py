"""Attention of a decode step: one new token a sequence over its paged keys and values.

Legend: T tokens and sequences, H query heads, H_kv heads of keys and values, D columns of a head, P pages of the cache.
"""

from __future__ import annotations

import torch

from shadow_kernels import checks


def check_arguments(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Raise ShapeError or UnsupportedDtypeError, naming the argument, unless all shapes and dtypes agree."""
    checks.check_dtype("query", query, (torch.bfloat16, torch.float16))
    if query.dim() != 3 or key_cache.dim() != 4 or query.shape[1] % key_cache.shape[2]:
        raise checks.ShapeError(
            "query must be (num_tokens, heads, D) and key_cache (pages, page_size, kv_heads, D), heads a multiple "
            f"of kv_heads, got {tuple(query.shape)} and {tuple(key_cache.shape)}"
        )
    num_tokens, _, head_size = query.shape
    checks.check_shape("key_cache", key_cache, (*key_cache.shape[:3], head_size))
    checks.check_shape("value_cache", value_cache, tuple(key_cache.shape))
    checks.check_shape("out", out, tuple(query.shape))
    for name, tensor in (("key_cache", key_cache), ("value_cache", value_cache), ("out", out)):
        checks.check_dtype(name, tensor, (query.dtype,))
    for name, tensor, num_dims in (("block_table", block_table, 2), ("seq_lens", seq_lens, 1)):
        checks.check_dtype(name, tensor, (torch.int32,))
        if tensor.dim() != num_dims or len(tensor) < num_tokens or tensor.stride(-1) != 1:
            raise checks.ShapeError(
                f"{name} must have {num_dims} dimensions, the last contiguous, and a row for each of {num_tokens} "
                f"tokens, got {tuple(tensor.shape)}"
            )
