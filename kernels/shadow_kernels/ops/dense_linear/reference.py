"""Oracle of `dense_linear`: fp64. For tests only."""

from __future__ import annotations

import torch


def dense_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return (T, N) fp64."""
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()
