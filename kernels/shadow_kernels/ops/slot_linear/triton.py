"""Triton version of `slot_linear`: one program per block of a slot's tokens and block of outputs.

A program's tokens belong to one slot and are gathered through `token_order`, so it reads one weight block and no
adapter's weights meet another's tokens. It begins at a tile of the grouping; where a block is as tall as several
tiles, the first tile's program takes them all and the others leave. Programs of one output block are neighbours and
share it in cache. The last programs write the zeros of all other tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from shadow_kernels.ops.slot_linear.config import SlotLinearConfig, all_configs, choose_config
from shadow_kernels.segments import TILE_TOKENS, Grouping, max_tiles

_CLEARED_TOKENS = 16  # of one program that writes zeros


@triton.jit
def _wait_for_previous_kernel():
    """Wait until the kernel in front has ended, then let the next one begin: all before this one is done by then."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _clear_others(
    out_ptr,
    adapter_slots_ptr,
    first_token,
    num_tokens,
    first_slot,
    num_class_slots,
    N,
    BLOCK_CLEAR: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tokens = first_token + tl.arange(0, BLOCK_CLEAR)
    index = tl.load(adapter_slots_ptr + tokens, mask=tokens < num_tokens, other=-1) - first_slot
    is_other = (tokens < num_tokens) & ((index < 0) | (index >= num_class_slots))
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = out_ptr + tokens[:, None].to(tl.int64) * N + offs_n[None, :]
    zeros = tl.zeros((BLOCK_CLEAR, BLOCK_N), out_ptr.dtype.element_ty)
    tl.store(out, zeros, mask=is_other[:, None] & (offs_n[None, :] < N))


@triton.jit
def _load_extent(extent_ptr, offs_n, chunk, BLOCK_N: tl.constexpr):
    """Return which of the block's rows the adapter has, and how many columns to read: none where it has no row."""
    num_rows = tl.load(extent_ptr)
    is_used = offs_n % chunk < num_rows
    # Arithmetic instead of a reduction over the threads: the block begins among a chunk's used rows or reaches into the
    # next chunk.
    first = tl.program_id(1) * BLOCK_N % chunk
    has_row = (num_rows > 0) & ((first < num_rows) | (first + BLOCK_N > chunk))
    return is_used, tl.where(has_row, tl.load(extent_ptr + 1), 0)


# What differs from step to step must not select code: a step would wait for its compilation.
@triton.jit(do_not_specialize=["num_tokens", "num_tiles"])
def slot_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    extents_ptr,
    out_ptr,
    adapter_slots_ptr,
    token_order_ptr,
    slot_starts_ptr,
    tiles_ptr,
    num_tokens,
    num_tiles,
    stride_x_t,
    stride_weight_a,
    stride_bias_a,
    stride_extents_a,
    first_slot,
    num_class_slots,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    HAS_EXTENTS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    TILE_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_CLEAR: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """out[t, n] = sum_k x[t, k] * weight[a, n, k] + bias[a, n] for up to BLOCK_M tokens t of one slot."""
    tile = tl.program_id(0)
    if tile >= num_tiles:
        if IS_DEPENDENT:
            _wait_for_previous_kernel()
        _clear_others(
            out_ptr, adapter_slots_ptr, (tile - num_tiles) * BLOCK_CLEAR, num_tokens, first_slot, num_class_slots, N,
            BLOCK_CLEAR, BLOCK_N,
        )  # fmt: skip
        return
    slot = tl.load(tiles_ptr + 2 * tile)
    index = slot - first_slot
    is_own = (slot >= 0) & (index >= 0) & (index < num_class_slots)
    start = tl.load(tiles_ptr + 2 * tile + 1)
    if BLOCK_M > TILE_M:
        is_own = is_own & ((start - tl.load(slot_starts_ptr + tl.maximum(slot, 0))) % BLOCK_M == 0)
    if is_own:
        positions = start + tl.arange(0, BLOCK_M)
        mask_m = positions < tl.load(slot_starts_ptr + slot + 1)
        tokens = tl.load(token_order_ptr + positions, mask=mask_m, other=0).to(tl.int64)
        offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        mask_rows = mask_n
        used_k = K
        if HAS_EXTENTS:
            extent_ptr = extents_ptr + index * stride_extents_a
            is_used, used_k = _load_extent(extent_ptr, offs_n, N // NUM_CHUNKS, BLOCK_N)
            mask_rows = mask_n & is_used
        x_rows = x_ptr + tokens[:, None] * stride_x_t
        weight_base = weight_ptr + index.to(tl.int64) * stride_weight_a
        weight_columns = weight_base + offs_n[None, :].to(tl.int64) * K
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if IS_DEPENDENT:
            _wait_for_previous_kernel()
        for k in range(0, used_k, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            # Not `used_k`: nobody knows what divides it, and such a mask would cut wide reads into single elements.
            mask_k = offs_k < K
            b_x = tl.load(
                x_rows + offs_k[None, :], mask=mask_m[:, None] & mask_k[None, :], other=0.0
            )
            mask_w = mask_k[:, None] & mask_rows[None, :]
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
    extents: torch.Tensor | None,
    num_chunks: int,
    grouping: Grouping,
    first_slot: int,
) -> torch.Tensor:
    """Run the operator; arguments as in `shadow_kernels.slot_linear`, already checked. Returns (T, N)."""
    config = choose_config(x.shape[0], x.shape[1], weight.shape[1], x.dtype)
    return launch(x, weight, bias, extents, num_chunks, grouping, first_slot, config)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    grouping: Grouping,
    first_slot: int,
    config: SlotLinearConfig,
) -> torch.Tensor:
    """Run the operator with a launch configuration of one's own."""
    out = x.new_empty(x.shape[0], weight.shape[1])
    grid, arguments, options = _launch_arguments(
        x, weight, bias, extents, num_chunks, out, grouping, first_slot, config
    )
    slot_linear_kernel[grid](*arguments, **options)
    return out


def compile_ahead(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    grouping: Grouping,
    first_slot: int,
    max_tokens: int,
    min_tokens: int = 1,
) -> None:
    """Compile and load what launches of `min_tokens` to `max_tokens` tokens run; nothing is launched."""
    if triton.knobs.runtime.interpret:
        return
    _, num_outputs, num_inputs = weight.shape
    x, out = weight.new_empty(1, num_inputs), weight.new_empty(1, num_outputs)
    for config in all_configs(min_tokens, max_tokens, num_inputs, num_outputs, weight.dtype):
        grid, arguments, options = _launch_arguments(
            x, weight, bias, extents, num_chunks, out, grouping, first_slot, config
        )
        kernel = slot_linear_kernel.warmup(*arguments, grid=grid, **options)
        _ = kernel.run  # loads the code onto the device, which its first launch would do


def _is_launched_early(device: torch.device) -> bool:
    """Whether the kernel may start while the one in front still runs: until it waits it reads grouping and extents."""
    return device.type == "cuda" and _has_dependent_launch(device.index or 0)


@cache
def _has_dependent_launch(device: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def _launch_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    out: torch.Tensor,
    grouping: Grouping,
    first_slot: int,
    config: SlotLinearConfig,
) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """Return grid, arguments and compile-time options of the kernel."""
    num_tokens, num_outputs = x.shape[0], weight.shape[1]
    num_tiles = max_tiles(num_tokens, len(grouping.slot_starts) - 1)
    is_dependent = _is_launched_early(x.device)
    num_programs = num_tiles + triton.cdiv(num_tokens, _CLEARED_TOKENS)
    grid = (num_programs, triton.cdiv(num_outputs, config.block_n))
    arguments = (
        x,
        weight,
        weight if bias is None else bias,
        grouping.tiles if extents is None else extents,
        out,
        grouping.adapter_slots,
        grouping.token_order,
        grouping.slot_starts,
        grouping.tiles,
        num_tokens,
        num_tiles,
        x.stride(0),
        weight.stride(0),
        0 if bias is None else bias.stride(0),
        0 if extents is None else extents.stride(0),
        first_slot,
        len(weight),
        num_outputs,
        x.shape[1],
    )
    options = {
        "HAS_BIAS": bias is not None,
        "HAS_EXTENTS": extents is not None,
        "NUM_CHUNKS": num_chunks,
        "TILE_M": TILE_TOKENS,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_CLEAR": _CLEARED_TOKENS,
        "IS_DEPENDENT": is_dependent,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    if is_dependent:
        options["launch_pdl"] = True
    return grid, arguments, options
