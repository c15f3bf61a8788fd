"""Oracle of `slot_linear`: fp64, one token at a time. For tests only; reads `adapter_slots`, never the grouping."""

from __future__ import annotations

import torch


def slot_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    adapter_slots: torch.Tensor,
    first_slot: int,
    extents: torch.Tensor | None = None,
    num_chunks: int = 1,
) -> torch.Tensor:
    """Return (T, N) fp64: each token times its own slot's weight, zeros for tokens of no or another class."""
    out = torch.zeros(len(x), weight.shape[1], dtype=torch.float64, device=x.device)
    for token, slot in enumerate(adapter_slots[: len(x)].tolist()):
        index = slot - first_slot
        if 0 <= index < len(weight):
            num_outputs, columns = weight.shape[1:]
            rows = num_outputs // num_chunks
            if extents is not None:
                rows, columns = extents[index].tolist()
            for first in range(0, num_outputs, num_outputs // num_chunks):
                part = slice(first, first + rows)
                out[token, part] = (
                    weight[index, part, :columns].double() @ x[token, :columns].double()
                )
            if bias is not None:
                out[token] += bias[index].double()
    return out
