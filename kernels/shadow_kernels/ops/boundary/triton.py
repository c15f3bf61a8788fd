"""Triton version of `boundary_`: three launches, each with one program per tile of tokens and chunk of columns.

    reduce   partial sums of x @ update_in.T over the chunk, and the chunk's share of the LayerNorm moments
    update   adds the partial sums up, writes the chunk of the new state, partial sums of (h - s) @ down.T
    inject   adds those up and writes the chunk of hidden

A tile holds up to 16 tokens of one slot. The cut over columns keeps a device busy in decode, where a step has a few
tokens. Partial sums go through fp32 scratch in a fixed order, without atomics, so results are deterministic.
Legend: D hidden size, G gate size, R rank, h base hidden, s shadow state, u bottleneck, z its output.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from shadow_kernels.ops.boundary import NORM_EPS, BoundaryFlag, BoundaryWeights
from shadow_kernels.ops.boundary.config import choose_config
from shadow_kernels.segments import TILE_TOKENS, Grouping, max_tiles

_INJECT = tl.constexpr(int(BoundaryFlag.INJECT))
_UPDATE = tl.constexpr(int(BoundaryFlag.UPDATE))
_NORM = tl.constexpr(int(BoundaryFlag.NORM))
_GELU = tl.constexpr(int(BoundaryFlag.GELU))
_BIAS = tl.constexpr(int(BoundaryFlag.BIAS))
_EPS = tl.constexpr(NORM_EPS)


@triton.jit
def _load_tile(tiles_ptr, token_order_ptr, slot_starts_ptr, flags_ptr, BLOCK_M: tl.constexpr):
    """Return (slot, flags, tokens, mask) of this program's tile; an unused tile has flags 0 and an empty mask."""
    tile = tl.program_id(0)
    slot = tl.load(tiles_ptr + 2 * tile)
    positions = tl.load(tiles_ptr + 2 * tile + 1) + tl.arange(0, BLOCK_M)
    mask_m = positions < tl.load(slot_starts_ptr + slot + 1)
    flags = tl.load(flags_ptr + slot, mask=slot >= 0, other=0)
    tokens = tl.load(token_order_ptr + positions, mask=mask_m, other=0).to(tl.int64)
    return slot.to(tl.int64), flags, tokens, mask_m


@triton.jit
def _load_h(
    hidden_ptr,
    residual_ptr,
    tokens,
    offs_d,
    mask,
    stride_hidden_t,
    stride_residual_t,
    HAS_RESIDUAL: tl.constexpr,
):
    offs = tokens[:, None] * stride_hidden_t + offs_d[None, :]
    b_h = tl.load(hidden_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        offs = tokens[:, None] * stride_residual_t + offs_d[None, :]
        b_h += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    return b_h


@triton.jit
def _load_rows(rows_ptr, num_rows, offs_d, D, BLOCK_ROWS: tl.constexpr):
    """Return (BLOCK_ROWS, BLOCK_D) fp32 of a (num_rows, D) weight, zero outside."""
    offs_r = tl.arange(0, BLOCK_ROWS)
    mask = (offs_r[:, None] < num_rows) & (offs_d[None, :] < D)
    return tl.load(rows_ptr + offs_r[:, None] * D + offs_d[None, :], mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def boundary_reduce_kernel(
    hidden_ptr,
    residual_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    update_in_ptr,
    flags_ptr,
    tiles_ptr,
    token_order_ptr,
    slot_starts_ptr,
    sums_ptr,
    moments_ptr,
    affine_ptr,
    stride_hidden_t,
    stride_residual_t,
    stride_norm_weight_a,
    stride_norm_bias_a,
    stride_update_in_a,
    D,
    G,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk's partial sums of x @ update_in.T for both branches.

    With a norm x is unknown before all chunks are seen, so the chunk is centred on its own mean, which keeps the
    sums free of cancellation; `_bottleneck` shifts them to the row's mean with the help of two sums over the chunk:
    weight . update_in and bias . update_in ("affine").
    """
    slot, flags, tokens, mask_m = _load_tile(
        tiles_ptr, token_order_ptr, slot_starts_ptr, flags_ptr, BLOCK_M
    )
    if (flags & _UPDATE) != 0:
        chunk = tl.program_id(1)
        block = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + chunk
        offs_m = tl.arange(0, BLOCK_M)
        offs_g = tl.arange(0, BLOCK_G)
        offs_d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        mask_d = offs_d < D
        mask = mask_m[:, None] & mask_d[None, :]
        b_x = _load_h(
            hidden_ptr,
            residual_ptr,
            tokens,
            offs_d,
            mask,
            stride_hidden_t,
            stride_residual_t,
            HAS_RESIDUAL,
        )
        b_weight = tl.zeros((BLOCK_D,), tl.float32)
        b_bias = tl.zeros((BLOCK_D,), tl.float32)
        if (flags & _NORM) != 0:
            mean = tl.sum(b_x, 1) / tl.minimum(D - chunk * BLOCK_D, BLOCK_D)
            b_x = tl.where(mask, b_x - mean[:, None], 0.0)
            moments = moments_ptr + (block * BLOCK_M + offs_m) * 2
            tl.store(moments, mean)
            tl.store(moments + 1, tl.sum(b_x * b_x, 1))
            weight_offs = slot * stride_norm_weight_a + offs_d
            b_weight = tl.load(norm_weight_ptr + weight_offs, mask=mask_d, other=0.0).to(tl.float32)
            bias_offs = slot * stride_norm_bias_a + offs_d
            b_bias = tl.load(norm_bias_ptr + bias_offs, mask=mask_d, other=0.0).to(tl.float32)
            b_x = b_x * b_weight[None, :]
        for branch in tl.static_range(2):
            in_ptr = update_in_ptr + slot * stride_update_in_a + branch * G * D
            b_in = _load_rows(in_ptr, G, offs_d, D, BLOCK_G)
            b_sum = tl.dot(b_x, tl.trans(b_in), input_precision=PRECISION)
            sums = (
                sums_ptr
                + ((block * 2 + branch) * BLOCK_M + offs_m[:, None]) * BLOCK_G
                + offs_g[None, :]
            )
            tl.store(sums, b_sum)
            if (flags & _NORM) != 0:
                affine = affine_ptr + (block * 2 + branch) * 2 * BLOCK_G + offs_g
                tl.store(affine, tl.sum(b_in * b_weight[None, :], 1))
                tl.store(affine + BLOCK_G, tl.sum(b_in * b_bias[None, :], 1))


@triton.jit
def _activate(u, flags):
    activated = u * tl.sigmoid(u)
    if (flags & _GELU) != 0:
        activated = 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))
    return activated


@triton.jit
def _bottleneck(
    sums_ptr,
    moments_ptr,
    affine_ptr,
    in_bias_ptr,
    flags,
    num_chunks,
    D,
    G,
    BRANCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return u = act(x @ update_in.T + bias), (BLOCK_M, BLOCK_G) fp32, from the chunks' partial sums."""
    offs_c = tl.arange(0, BLOCK_C)
    offs_m = tl.arange(0, BLOCK_M)
    offs_g = tl.arange(0, BLOCK_G)
    mask_c = offs_c < num_chunks
    blocks = tl.program_id(0).to(tl.int64) * num_chunks + offs_c
    rows = (blocks * 2 + BRANCH)[None, :, None] * BLOCK_M + offs_m[:, None, None]
    sums = tl.load(
        sums_ptr + rows * BLOCK_G + offs_g[None, None, :], mask=mask_c[None, :, None], other=0.0
    )
    if (flags & _NORM) != 0:
        moments = moments_ptr + (blocks[None, :] * BLOCK_M + offs_m[:, None]) * 2
        chunk_mean = tl.load(moments, mask=mask_c[None, :], other=0.0)
        chunk_square = tl.load(moments + 1, mask=mask_c[None, :], other=0.0)
        count = tl.minimum(tl.maximum(D - offs_c * BLOCK_D, 0), BLOCK_D).to(tl.float32)
        mean = tl.sum(chunk_mean * count[None, :], 1) / D
        shift = chunk_mean - mean[:, None]
        variance = tl.sum(chunk_square + count[None, :] * shift * shift, 1) / D
        affine = affine_ptr + ((blocks * 2 + BRANCH) * 2 * BLOCK_G)[:, None] + offs_g[None, :]
        b_weight = tl.load(affine, mask=mask_c[:, None], other=0.0)
        b_bias = tl.load(affine + BLOCK_G, mask=mask_c[:, None], other=0.0)
        u = tl.sum(sums + shift[:, :, None] * b_weight[None, :, :], 1)
        u = u / tl.sqrt(variance + _EPS)[:, None] + tl.sum(b_bias, 0)[None, :]
    else:
        u = tl.sum(sums, 1)
    if (flags & _BIAS) != 0:
        bias = tl.load(in_bias_ptr + BRANCH * G + offs_g, mask=offs_g < G, other=0.0)
        u += bias.to(tl.float32)[None, :]
    return _activate(u, flags)


@triton.jit
def _branch_output(
    u,
    out_ptr,
    out_bias_ptr,
    flags,
    offs_d,
    D,
    G,
    BRANCH: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return z = u @ update_out + bias, (BLOCK_M, BLOCK_D) fp32."""
    b_out = _load_rows(out_ptr + BRANCH * G * D, G, offs_d, D, BLOCK_G)
    z = tl.dot(u, b_out, input_precision=PRECISION)
    if (flags & _BIAS) != 0:
        bias = tl.load(out_bias_ptr + BRANCH * D + offs_d, mask=offs_d < D, other=0.0)
        z += bias.to(tl.float32)[None, :]
    return z


@triton.jit
def boundary_update_kernel(
    hidden_ptr,
    residual_ptr,
    state_ptr,
    update_in_bias_ptr,
    update_out_ptr,
    update_out_bias_ptr,
    down_ptr,
    flags_ptr,
    tiles_ptr,
    token_order_ptr,
    slot_starts_ptr,
    sums_ptr,
    moments_ptr,
    affine_ptr,
    projections_ptr,
    stride_hidden_t,
    stride_residual_t,
    stride_state_t,
    stride_update_in_bias_a,
    stride_update_out_a,
    stride_update_out_bias_a,
    stride_down_a,
    D,
    G,
    R,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write s = s + sigmoid(z_gate) * (z_transform - s) for one chunk, and its partial sums of (h - s) @ down.T."""
    slot, flags, tokens, mask_m = _load_tile(
        tiles_ptr, token_order_ptr, slot_starts_ptr, flags_ptr, BLOCK_M
    )
    if (flags & (_UPDATE | _INJECT)) != 0:
        chunk = tl.program_id(1)
        num_chunks = tl.num_programs(1)
        offs_d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = mask_m[:, None] & (offs_d < D)[None, :]
        state = state_ptr + tokens[:, None] * stride_state_t + offs_d[None, :]
        b_s = tl.load(state, mask=mask, other=0.0).to(tl.float32)
        if (flags & _UPDATE) != 0:
            in_bias = update_in_bias_ptr + slot * stride_update_in_bias_a
            out = update_out_ptr + slot * stride_update_out_a
            out_bias = update_out_bias_ptr + slot * stride_update_out_bias_a
            transform = _branch_output(
                _bottleneck(
                    sums_ptr, moments_ptr, affine_ptr, in_bias, flags, num_chunks, D, G,
                    0, BLOCK_M, BLOCK_D, BLOCK_G, BLOCK_C,
                ),
                out, out_bias, flags, offs_d, D, G, 0, BLOCK_G, PRECISION,
            )  # fmt: skip
            gate = _branch_output(
                _bottleneck(
                    sums_ptr, moments_ptr, affine_ptr, in_bias, flags, num_chunks, D, G,
                    1, BLOCK_M, BLOCK_D, BLOCK_G, BLOCK_C,
                ),
                out, out_bias, flags, offs_d, D, G, 1, BLOCK_G, PRECISION,
            )  # fmt: skip
            b_s += tl.sigmoid(gate) * (transform - b_s)
            tl.store(state, b_s.to(state_ptr.dtype.element_ty), mask=mask)
        if (flags & _INJECT) != 0:
            b_h = _load_h(
                hidden_ptr,
                residual_ptr,
                tokens,
                offs_d,
                mask,
                stride_hidden_t,
                stride_residual_t,
                HAS_RESIDUAL,
            )
            b_down = _load_rows(down_ptr + slot * stride_down_a, R, offs_d, D, BLOCK_R)
            b_sum = tl.dot(b_h - b_s, tl.trans(b_down), input_precision=PRECISION)
            block = tl.program_id(0).to(tl.int64) * num_chunks + chunk
            rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(
                projections_ptr + rows[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :], b_sum
            )


@triton.jit
def boundary_inject_kernel(
    hidden_ptr,
    scale_ptr,
    up_ptr,
    flags_ptr,
    tiles_ptr,
    token_order_ptr,
    slot_starts_ptr,
    projections_ptr,
    stride_hidden_t,
    stride_up_a,
    D,
    R,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write hidden += scale * ((h - s) @ down.T) @ up for one chunk."""
    slot, flags, tokens, mask_m = _load_tile(
        tiles_ptr, token_order_ptr, slot_starts_ptr, flags_ptr, BLOCK_M
    )
    if (flags & _INJECT) != 0:
        num_chunks = tl.num_programs(1)
        offs_c = tl.arange(0, BLOCK_C)
        blocks = tl.program_id(0).to(tl.int64) * num_chunks + offs_c
        rows = blocks[None, :, None] * BLOCK_M + tl.arange(0, BLOCK_M)[:, None, None]
        offs = rows * BLOCK_R + tl.arange(0, BLOCK_R)[None, None, :]
        parts = tl.load(
            projections_ptr + offs, mask=(offs_c < num_chunks)[None, :, None], other=0.0
        )
        offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        b_up = _load_rows(up_ptr + slot * stride_up_a, R, offs_d, D, BLOCK_R)
        correction = tl.dot(tl.sum(parts, 1), b_up, input_precision=PRECISION)
        hidden = hidden_ptr + tokens[:, None] * stride_hidden_t + offs_d[None, :]
        mask = mask_m[:, None] & (offs_d < D)[None, :]
        b_hidden = tl.load(hidden, mask=mask, other=0.0).to(tl.float32)
        b_hidden += tl.load(scale_ptr + slot) * correction
        tl.store(hidden, b_hidden.to(hidden_ptr.dtype.element_ty), mask=mask)


def can_run_on(device_type: str) -> bool:
    """Whether Triton can launch for this device; its interpreter takes CPU tensors too."""
    return device_type == "cuda" or triton.knobs.runtime.interpret


def boundary_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
) -> None:
    """Run the operator; arguments as in `shadow_kernels.boundary_`, already checked. Mutates hidden and state."""
    w = weights
    num_tokens, hidden_size = hidden.shape
    gate_size, rank = w.update_in.shape[2], w.down.shape[1]
    config = choose_config(hidden_size, gate_size, rank, hidden.dtype)
    grid = (max_tiles(num_tokens, len(grouping.slot_starts) - 1), config.num_chunks)
    sums, moments, affine, projections = _scratch(
        grid, config.block_g, config.block_r, hidden.device
    )
    tile_of = (w.flags, grouping.tiles, grouping.token_order, grouping.slot_starts)
    base = (hidden, hidden if residual is None else residual)
    base_strides = [tensor.stride(0) for tensor in base]
    launch: dict[str, Any] = {
        "BLOCK_M": TILE_TOKENS,
        "BLOCK_D": config.block_d,
        "PRECISION": config.precision,
        "num_warps": config.num_warps,
    }
    has_residual = {"HAS_RESIDUAL": residual is not None}
    reduce_stacks = (w.norm_weight, w.norm_bias, w.update_in)
    boundary_reduce_kernel[grid](
        *base, *reduce_stacks, *tile_of, sums, moments, affine,
        *base_strides, *(stack.stride(0) for stack in reduce_stacks), hidden_size, gate_size,
        BLOCK_G=config.block_g, **has_residual, **launch,
    )  # fmt: skip
    update_stacks = (w.update_in_bias, w.update_out, w.update_out_bias, w.down)
    boundary_update_kernel[grid](
        *base, state, *update_stacks, *tile_of, sums, moments, affine, projections,
        *base_strides, state.stride(0), *(stack.stride(0) for stack in update_stacks), hidden_size, gate_size, rank,
        BLOCK_G=config.block_g, BLOCK_R=config.block_r, BLOCK_C=config.block_chunks, **has_residual, **launch,
    )  # fmt: skip
    boundary_inject_kernel[grid](
        hidden, w.scale, w.up, *tile_of, projections, hidden.stride(0), w.up.stride(0), hidden_size, rank,
        BLOCK_R=config.block_r, BLOCK_C=config.block_chunks, **launch,
    )  # fmt: skip


def _scratch(
    grid: tuple[int, int], block_g: int, block_r: int, device: torch.device
) -> list[torch.Tensor]:
    """Return fp32 buffers for the partial sums; each program reads only what one before it has written.

    The four are views of one allocation: sums (tiles, chunks, 2, 16, block_g), moments (tiles, chunks, 16, 2),
    affine (tiles, chunks, 2, 2, block_g) and projections (tiles, chunks, 16, block_r).
    """
    num_blocks = grid[0] * grid[1]
    sizes = [2 * TILE_TOKENS * block_g, TILE_TOKENS * 2, 4 * block_g, TILE_TOKENS * block_r]
    buffer = torch.empty(num_blocks * sum(sizes), dtype=torch.float32, device=device)
    return list(buffer.split([num_blocks * size for size in sizes]))
