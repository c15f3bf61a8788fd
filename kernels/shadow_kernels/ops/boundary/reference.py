"""Oracle of `boundary_`: fp64, one token at a time, straight from the equations. For tests only.

Source: ShadowPEFT (arXiv 2604.19254): h = h + alpha * (h - s) D U; s = s + sigmoid(gate(x)) * (transform(x) - s).
It reads `adapter_slots` alone, never the grouping that the fast versions follow.
"""

from __future__ import annotations

import torch

from shadow_kernels.ops.boundary import NORM_EPS, BoundaryFlag, BoundaryWeights


def boundary_reference(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    adapter_slots: torch.Tensor,
    weights: BoundaryWeights,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (hidden, state) after the boundary as new fp64 tensors of the same shapes; the arguments stay."""
    new_hidden, new_state = hidden.double().clone(), state.double().clone()
    for token, slot in enumerate(adapter_slots[: len(hidden)].tolist()):
        if slot < 0:
            continue
        own = BoundaryWeights(*(stack[slot] for stack in weights))
        flags = int(own.flags)
        h = new_hidden[token] if residual is None else new_hidden[token] + residual[token].double()
        if flags & BoundaryFlag.UPDATE:
            new_state[token] = _update(h, new_state[token], flags, own)
        if flags & BoundaryFlag.INJECT:
            correction = (own.down.double() @ (h - new_state[token])) @ own.up.double()
            new_hidden[token] += own.scale.double() * correction
    return new_hidden, new_state


def add_rms_norm_reference(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (norm, sum) of (T, D) tensors as new fp64 tensors."""
    total = hidden.double() + residual.double()
    mean = total.square().sum(-1, keepdim=True) / total.shape[-1]
    return total / torch.sqrt(mean + eps) * weight.double(), total


def _update(h: torch.Tensor, s: torch.Tensor, flags: int, own: BoundaryWeights) -> torch.Tensor:
    x = h
    if flags & BoundaryFlag.NORM:
        centred = h - h.mean()
        x = centred / torch.sqrt(centred.square().mean() + NORM_EPS)
        x = x * own.norm_weight.double() + own.norm_bias.double()
    transform, gate = (_branch(x, branch, flags, own) for branch in (0, 1))
    return s + (transform - s) / (1 + torch.exp(-gate))


def _branch(x: torch.Tensor, branch: int, flags: int, own: BoundaryWeights) -> torch.Tensor:
    u = own.update_in[branch].double() @ x
    if flags & BoundaryFlag.BIAS:
        u = u + own.update_in_bias[branch].double()
    z = (_gelu(u) if flags & BoundaryFlag.GELU else u / (1 + torch.exp(-u))) @ own.update_out[
        branch
    ].double()
    return z + own.update_out_bias[branch].double() if flags & BoundaryFlag.BIAS else z


def _gelu(u: torch.Tensor) -> torch.Tensor:
    return 0.5 * u * (1 + torch.erf(u / 2**0.5))
