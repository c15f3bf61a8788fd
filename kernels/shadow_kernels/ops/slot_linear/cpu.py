"""Vectorised torch version of `slot_linear`: one product per active slot over tokens sorted by slot, in fp32."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

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
    out = x.new_zeros(x.shape[0], weight.shape[1])
    starts = grouping.slot_starts[first_slot : first_slot + len(weight) + 1].tolist()
    for index, (start, end) in enumerate(itertools.pairwise(starts)):
        if start < end:
            tokens = grouping.token_order[start:end].long()
            extent = None if extents is None else extents[index]
            product = _multiply(x[tokens].float(), weight[index], extent, num_chunks)
            if bias is not None:
                product += bias[index].float()
            out[tokens] = product.to(x.dtype)
    return out


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, extent: torch.Tensor | None, num_chunks: int
) -> torch.Tensor:
    """Return (tokens, N) fp32, zeros in rows beyond the extent."""
    if extent is None:
        return F.linear(x, weight.float())
    num_rows, num_columns = extent.tolist()
    chunks = weight.view(num_chunks, -1, weight.shape[1])
    if num_rows == chunks.shape[1] and num_columns == weight.shape[1]:
        return F.linear(x, weight.float())
    used = chunks[:, :num_rows, :num_columns].float()
    product = x.new_zeros(len(x), *chunks.shape[:2])
    product[..., :num_rows] = torch.einsum("tk,cnk->tcn", x[:, :num_columns], used)
    return product.flatten(1)
