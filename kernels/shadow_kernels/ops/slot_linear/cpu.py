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
    grouping: Grouping,
    first_slot: int,
) -> torch.Tensor:
    """Run the operator; arguments as in `shadow_kernels.slot_linear`, already checked. Returns (T, N)."""
    out = x.new_zeros(x.shape[0], weight.shape[1])
    starts = grouping.slot_starts[first_slot : first_slot + len(weight) + 1].tolist()
    for index, (start, end) in enumerate(itertools.pairwise(starts)):
        if start < end:
            tokens = grouping.token_order[start:end].long()
            slot_bias = None if bias is None else bias[index].float()
            out[tokens] = F.linear(x[tokens].float(), weight[index].float(), slot_bias).to(x.dtype)
    return out
