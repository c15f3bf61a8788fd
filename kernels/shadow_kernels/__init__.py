"""Operators for ShadowPEFT adapters: many adapters in one batch, each token with its own adapter's weights.

Importing the package registers `boundary_`, `boundary_rms_norm_`, `slot_linear`, `dense_linear`, `add_rms_norm_` and
`silu_and_mul` under `torch.ops.shadow`; it touches no device.
"""

from __future__ import annotations

import torch

from shadow_kernels.checks import (
    BackendUnavailableError,
    KernelError,
    ShapeError,
    UnsupportedDtypeError,
)
from shadow_kernels.dispatch import (
    Backend,
    compile_slot_linear,
    has_fast_decode_attention,
    has_fast_dense_linear,
    has_fast_rms_norm,
    has_fast_silu_and_mul,
    new_arrivals,
    register_operators,
    run_boundary_,
    run_boundary_rms_norm_,
    run_decode_attention,
    run_dense_linear,
    run_slot_linear,
    takes_decode_attention,
)
from shadow_kernels.ops.boundary import BoundaryFlag, BoundaryWeights
from shadow_kernels.segments import NO_ADAPTER, TILE_TOKENS, Grouping, StepSegments, max_tiles

__all__ = [
    "NO_ADAPTER",
    "TILE_TOKENS",
    "BackendUnavailableError",
    "BoundaryFlag",
    "BoundaryWeights",
    "Grouping",
    "KernelError",
    "ShapeError",
    "StepSegments",
    "UnsupportedDtypeError",
    "add_rms_norm_",
    "boundary_",
    "boundary_rms_norm_",
    "compile_slot_linear",
    "decode_attention",
    "dense_linear",
    "has_fast_decode_attention",
    "has_fast_dense_linear",
    "has_fast_rms_norm",
    "has_fast_silu_and_mul",
    "max_tiles",
    "new_arrivals",
    "register_operators",
    "silu_and_mul",
    "slot_linear",
    "takes_decode_attention",
]

register_operators()


def boundary_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
    *,
    backend: Backend = "auto",
) -> None:
    """Update each token's shadow state, then add its adapter's correction to the base's hidden state.

    Formula, for a token of slot a >= 0, with h = hidden + residual:
        with UPDATE:  x = layer_norm(h) or h;  s = s + sigmoid(gate(x)) * (transform(x) - s)
        with INJECT:  hidden = hidden + scale[a] * ((h - s) @ down[a].T) @ up[a]

    Args:
        hidden: (T, D) bf16|fp16|fp32, last dim contiguous. T may be padded beyond the step's tokens.
        residual: (T, D) like hidden, vLLM's pending residual; read, never written. None means hidden is h.
        state: (at least T, D) like hidden; rows [0, T) hold s.
        grouping: `StepSegments.grouping` of the step; tensors on hidden's device, host_counts on the CPU.
        weights: this layer's `BoundaryWeights`; a slot with flags 0 is left alone.
        backend: "auto" goes by the device; "cpu", "cuda" or "triton" fails where it cannot run.
    Mutates: hidden and state, only rows of tokens with an adapter; all other rows stay bit for bit, NaN included.
    Numerics: everything in fp32 from the stored inputs; the state rounds once when stored, and the injection uses the
        unrounded fp32 state; hidden rounds once. GELU is the exact erf form. LayerNorm's eps is 1e-5.
    Raises: ShapeError, UnsupportedDtypeError naming the argument; BackendUnavailableError.
    Graph safety: no host synchronisation; launch grids depend on T and A only; nothing at all is launched while
        host_counts[0] == 0, so a graph captured without adapters holds no shadow kernel. Scratch comes from torch's
        allocator (the graph's pool during capture). Use `torch.ops.shadow.boundary_` inside compiled code.
    Source: ShadowPEFT (arXiv 2604.19254) injection and update; README.md in ops/boundary.
    """
    if backend == "auto":
        torch.ops.shadow.boundary_(hidden, residual, state, *grouping, *weights)
    else:
        run_boundary_(hidden, residual, state, grouping, weights, backend=backend)


def boundary_rms_norm_(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
    rms_weight: torch.Tensor,
    rms_eps: float,
    *,
    backend: Backend = "auto",
) -> None:
    """Do what `boundary_` does, then the RMS norm that the next base layer begins with.

    Formula, behind that of `boundary_`, for every row: residual = hidden + residual; hidden = residual /
        sqrt(mean(residual^2) + rms_eps) * rms_weight

    Args:
        hidden: as in `boundary_`.
        residual: (T, D) like hidden.
        state: as in `boundary_`.
        grouping: as in `boundary_`.
        weights: as in `boundary_`.
        rms_weight: (D,), dtype of hidden.
        rms_eps: added to the mean of squares.
        backend: as in `boundary_`; the norm is torch's where a backend has no kernel for it.
    Mutates: hidden and residual, all rows; state, only rows of tokens with an adapter.
    Numerics: as `boundary_`; the norm is of the fp32 sum, whose squares are added up in fp32 in an order that depends
        on D alone, so that a row without adapter has the same bits in every batch. It rounds once, behind the product
        with rms_weight. Where the norm is part of the boundary's launch (few tokens), hidden does not round in between.
    Raises: ShapeError, UnsupportedDtypeError naming the argument; BackendUnavailableError.
    Graph safety: as `boundary_`; while host_counts[0] == 0 only the norm is launched.
    Source: README.md in ops/boundary; the norm is arXiv 1910.07467.
    """
    if backend == "auto":
        torch.ops.shadow.boundary_rms_norm_(
            hidden, residual, state, *grouping, *weights, rms_weight, rms_eps
        )
    else:
        run_boundary_rms_norm_(
            hidden, residual, state, grouping, weights, rms_weight, rms_eps, backend=backend
        )


def slot_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grouping: Grouping,
    first_slot: int = 0,
    *,
    extents: torch.Tensor | None = None,
    num_chunks: int = 1,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Multiply each token by its own adapter's weight: out = x @ weight[a - first_slot].T + bias[a - first_slot].

    Args:
        x: (T, K) bf16|fp16|fp32, last dim contiguous.
        weight: (A_c, N, K), same dtype; any stride over A_c, contiguous inner dims. Slots of one class.
        bias: (A_c, N), same dtype, or None.
        grouping: `StepSegments.grouping` of the step; tensors on x's device, host_counts on the CPU.
        first_slot: the class owns slots [first_slot, first_slot + A_c) of the shared slot numbering.
        extents: (A_c, 2) int32 on x's device, any stride over A_c, or None for whole weights: how many rows of each
            chunk and how many columns a slot's adapter has. Rows beyond are taken as zeros and never read; columns
            beyond must be zeros and are read no further than to the end of a block of at most 256.
        num_chunks: equal parts of the N rows (2 where gate and up lie below each other).
        backend: "auto" goes by the device; "cpu", "cuda" or "triton" fails where it cannot run.
    Returns: (T, N), same dtype; exact zeros in rows whose token has no adapter or one of another class.
    Numerics: products accumulate in fp32, the bias is added in fp32, one rounding at the store.
    Raises: ShapeError, UnsupportedDtypeError naming the argument; BackendUnavailableError.
    Graph safety: no host synchronisation; grids depend on T, A and N only; while host_counts[0] == 0 only the output
        is zeroed. Use `torch.ops.shadow.slot_linear` inside compiled code.
    Source: grouped products over sorted rows, as in Punica's SGMV (arXiv 2310.18547), at full rank.
    """
    if backend != "auto":
        return run_slot_linear(
            x, weight, bias, grouping, first_slot,
            extents=extents, num_chunks=num_chunks, backend=backend,
        )  # fmt: skip
    result: torch.Tensor = torch.ops.shadow.slot_linear(
        x, weight, bias, extents, num_chunks, *grouping, first_slot
    )
    return result


def dense_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Multiply all tokens by one weight: out = x @ weight.T + bias. Steps of few tokens have a kernel of their own.

    Args:
        x: (T, K) bf16|fp16|fp32.
        weight: (N, K), same dtype.
        bias: (N,), same dtype, or None.
        backend: "auto" takes torch's product wherever there is no kernel; "cuda" fails there.
    Returns: (T, N), same dtype.
    Numerics: products accumulate in fp32, the bias is added in fp32, one rounding at the store. A row's bits depend on
        N and K alone in all steps that have the kernel, not on T nor on the other rows.
    Raises: ShapeError, UnsupportedDtypeError naming the argument; BackendUnavailableError.
    Graph safety: no host synchronisation; the grid depends on N and K only. Inside a CUDA graph the weight is read
        before the kernel in front has ended, so nothing captured into the same graph may write it. Use
        `torch.ops.shadow.dense_linear` inside compiled code.
    Source: README.md in ops/dense_linear.
    """
    if backend != "auto":
        return run_dense_linear(x, weight, bias, backend=backend)
    result: torch.Tensor = torch.ops.shadow.dense_linear(x, weight, bias)
    return result


def add_rms_norm_(
    hidden: torch.Tensor, residual: torch.Tensor, rms_weight: torch.Tensor, rms_eps: float
) -> None:
    """Add hidden to residual, then replace hidden by the sum's RMS norm: what `boundary_rms_norm_` ends with, alone.

    Args:
        hidden: (T, D) bf16|fp16|fp32, last dim contiguous.
        residual: (T, D) like hidden.
        rms_weight: (D,), dtype of hidden.
        rms_eps: added to the mean of squares.
    Mutates: hidden and residual, all rows.
    Numerics: as there.
    Raises: ShapeError, UnsupportedDtypeError naming the argument.
    Graph safety: no host synchronisation; the grid depends on T alone. Inside a CUDA graph rms_weight is read before
        the kernel in front has ended.
    Source: arXiv 1910.07467.
    """
    torch.ops.shadow.add_rms_norm_(hidden, residual, rms_weight, rms_eps)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Multiply the first half of x's columns, through SiLU, by the second: an MLP's gate and up.

    Args:
        x: (T, 2 M) bf16|fp16|fp32.
    Returns: (T, M), same dtype.
    Numerics: in fp32, one rounding at the store.
    Raises: ShapeError, UnsupportedDtypeError.
    Graph safety: no host synchronisation; the grid depends on T and M only.
    Source: arXiv 2002.05202 (SwiGLU).
    """
    result: torch.Tensor = torch.ops.shadow.silu_and_mul(x)
    return result


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
    """Attend from one token a sequence to all tokens of its sequence, itself included.

    Formula, for token t, its sequence's n = seq_lens[t] tokens, query head h and its head g of keys:
        out[t, h] = softmax(scale * query[t, h] @ keys[:n, g].T) @ values[:n, g]

    Args:
        query: (T, H, D) bf16|fp16, heads side by side.
        key_cache: (P, page_size, H_kv, D) like query; the sequence's token i is in page block_table[t, i // page_size].
        value_cache: like key_cache, same strides.
        block_table: (at least T, any) int32.
        seq_lens: (at least T,) int32; 0 gives a row of zeros.
        scale: of the scores.
        out: (T, H, D) like query; written.
        arrivals: of `new_arrivals`, zero before and after; calls that may run at the same time need one each.
    Mutates: out.
    Numerics: scores and sums in fp32, weights of the values round once to query's dtype, as FlashAttention's do. How
        sequences of more than 192 tokens are cut depends on the lengths of all: a row's bits may, then.
    Raises: ShapeError, UnsupportedDtypeError naming the argument; BackendUnavailableError unless
        `takes_decode_attention` says that there is a kernel.
    Graph safety: no host synchronisation; the grid depends on T and H_kv only. Inside a CUDA graph block_table and
        seq_lens are read before the kernel in front has ended, so nothing captured into the same graph may write them.
    Source: README.md in ops/decode_attention.
    """
    run_decode_attention(query, key_cache, value_cache, block_table, seq_lens, scale, out, arrivals)
