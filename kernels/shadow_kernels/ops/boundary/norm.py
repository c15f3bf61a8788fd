"""The RMS norm behind the boundary in torch, for backends that have no kernel for it."""

from __future__ import annotations

import torch


def add_rms_norm_(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> None:
    """Add hidden to residual and replace hidden by the sum's RMS norm; vLLM's `fused_add_rms_norm` in place.

    The norm rounds once, when stored, as the compiler makes it of vLLM's; uncompiled it rounds before the weight, too.

    Args:
        hidden: (T, D).
        residual: (T, D); the norm is of the sum in fp32, which rounds once when stored here.
        weight: (D,).
        eps: added to the mean of squares.
    """
    h = hidden.float() + residual.float()
    residual.copy_(h)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    hidden.copy_(h * weight.float())
