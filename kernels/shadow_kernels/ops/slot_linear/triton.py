"""Triton version of `slot_linear`: one program per tile of tokens and block of outputs.

A tile holds up to 16 tokens of one slot, gathered through `token_order`, so each program reads one weight block and
no adapter's weights meet another's tokens. Programs of one output block are neighbours and share it in cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadow_kernels.ops.slot_linear.config import choose_config
from shadow_kernels.segments import TILE_TOKENS, Grouping, max_tiles


@triton.jit
def slot_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    token_order_ptr,
    slot_starts_ptr,
    tiles_ptr,
    stride_x_t,
    stride_weight_a,
    stride_bias_a,
    first_slot,
    num_class_slots,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[t, n] = sum_k x[t, k] * weight[a, n, k] + bias[a, n] for the tokens t of one tile."""
    tile = tl.program_id(0)
    slot = tl.load(tiles_ptr + 2 * tile)
    index = slot - first_slot
    if (slot >= 0) & (index >= 0) & (index < num_class_slots):
        positions = tl.load(tiles_ptr + 2 * tile + 1) + tl.arange(0, BLOCK_M)
        mask_m = positions < tl.load(slot_starts_ptr + slot + 1)
        tokens = tl.load(token_order_ptr + positions, mask=mask_m, other=0).to(tl.int64)
        offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        x_rows = x_ptr + tokens[:, None] * stride_x_t
        weight_base = weight_ptr + index.to(tl.int64) * stride_weight_a
        weight_columns = weight_base + offs_n[None, :].to(tl.int64) * K
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < K
            b_x = tl.load(
                x_rows + offs_k[None, :], mask=mask_m[:, None] & mask_k[None, :], other=0.0
            )
            mask_w = mask_k[:, None] & mask_n[None, :]
            b_w = tl.load(weight_columns + offs_k[:, None], mask=mask_w, other=0.0)
            acc = tl.dot(b_x, b_w, acc, input_precision="ieee")
        if HAS_BIAS:
            bias_base = bias_ptr + index.to(tl.int64) * stride_bias_a
            acc += tl.load(bias_base + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        out = out_ptr + tokens[:, None] * N + offs_n[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


def can_run_on(device_type: str) -> bool:
    """Whether Triton can launch for this device; its interpreter takes CPU tensors too."""
    return device_type == "cuda" or triton.knobs.runtime.interpret


def slot_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grouping: Grouping,
    first_slot: int,
) -> torch.Tensor:
    """Run the operator; arguments as in `shadow_kernels.slot_linear`, already checked. Returns (T, N)."""
    num_tokens, num_outputs = x.shape[0], weight.shape[1]
    out = x.new_zeros(num_tokens, num_outputs)
    config = choose_config(num_tokens, x.dtype)
    num_tiles = max_tiles(num_tokens, len(grouping.slot_starts) - 1)
    grid = (num_tiles, triton.cdiv(num_outputs, config.block_n))
    slot_linear_kernel[grid](
        x,
        weight,
        weight if bias is None else bias,
        out,
        grouping.token_order,
        grouping.slot_starts,
        grouping.tiles,
        x.stride(0),
        weight.stride(0),
        0 if bias is None else bias.stride(0),
        first_slot,
        len(weight),
        num_outputs,
        x.shape[1],
        HAS_BIAS=bias is not None,
        BLOCK_M=TILE_TOKENS,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
