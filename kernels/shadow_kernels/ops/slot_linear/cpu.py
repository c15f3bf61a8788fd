"""Vectorised torch version of `slot_linear`: one product per active slot over tokens sorted by slot, in fp32."""

from __future__ import annotations

import itertools

import torch

from shadow_kernels.segments import Grouping


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
    starts = grouping.slot_starts[first_slot : first_slot + len(weight) + 1].tolist()
    tokens = grouping.token_order[starts[0] : starts[-1]].long()
    own = x.index_select(0, tokens).float()
    product = own.new_empty(len(tokens), weight.shape[1])
    used = None if extents is None else extents.tolist()
    for slot, (first, last) in enumerate(itertools.pairwise(starts)):
        if first < last:
            span = slice(first - starts[0], last - starts[0])
            _multiply(product[span], own[span], weight[slot], used and used[slot], num_chunks)
            if bias is not None:
                product[span] += bias[slot].float()
    out = x.new_zeros(x.shape[0], weight.shape[1])
    return out.index_copy_(0, tokens, product.to(x.dtype))


def _multiply(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    extent: list[int] | None,
    num_chunks: int,
) -> None:
    """Write x @ weight.T to out (tokens, N), zeros in rows beyond the extent; all fp32 but weight."""
    chunks = weight.view(num_chunks, -1, weight.shape[1])
    if extent is None or extent == [chunks.shape[1], weight.shape[1]]:
        torch.mm(x, weight.float().t(), out=out)
        return
    num_rows, num_columns = extent
    used = chunks[:, :num_rows, :num_columns].float()
    out.zero_()
    out.view(len(x), *chunks.shape[:2])[..., :num_rows] = torch.einsum(
        "tk,cnk->tcn", x[:, :num_columns], used
    )
