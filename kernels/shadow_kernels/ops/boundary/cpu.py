"""Vectorised torch version of `boundary_`: grouped products over tokens sorted by slot.

Loops over the slots that are active in the step, never over tokens. Computes in fp32 whatever the model dtype is.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from shadow_kernels.ops.boundary import NORM_EPS, BoundaryFlag, BoundaryWeights
from shadow_kernels.segments import Grouping


def boundary_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
) -> None:
    """Run the operator; arguments as in `shadow_kernels.boundary_`, already checked. Mutates hidden and state."""
    starts, flags = grouping.slot_starts.tolist(), weights.flags.tolist()
    for slot, (start, end) in enumerate(itertools.pairwise(starts)):
        if start < end and flags[slot]:
            tokens = grouping.token_order[start:end].long()
            slot_weights = BoundaryWeights(*(stack[slot] for stack in weights))
            _run_slot(hidden, residual, state, tokens, BoundaryFlag(flags[slot]), slot_weights)


def _run_slot(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    tokens: torch.Tensor,
    flags: BoundaryFlag,
    weights: BoundaryWeights,
) -> None:
    own_hidden = hidden[tokens].float()
    h = own_hidden if residual is None else own_hidden + residual[tokens].float()
    s = state[tokens].float()
    if flags & BoundaryFlag.UPDATE:
        s = _updated_state(h, s, flags, weights)
        state[tokens] = s.to(state.dtype)
    if flags & BoundaryFlag.INJECT:
        correction = F.linear(h - s, weights.down.float()) @ weights.up.float()
        hidden[tokens] = (own_hidden + weights.scale * correction).to(hidden.dtype)


def _updated_state(
    h: torch.Tensor, s: torch.Tensor, flags: BoundaryFlag, weights: BoundaryWeights
) -> torch.Tensor:
    if flags & BoundaryFlag.NORM:
        h = F.layer_norm(
            h, h.shape[-1:], weights.norm_weight.float(), weights.norm_bias.float(), NORM_EPS
        )
    transform = _bottleneck(h, 0, flags, weights)
    gate = torch.sigmoid(_bottleneck(h, 1, flags, weights))
    return s + gate * (transform - s)


def _bottleneck(
    x: torch.Tensor, branch: int, flags: BoundaryFlag, weights: BoundaryWeights
) -> torch.Tensor:
    """Return act(x @ in.T + in_bias) @ out + out_bias of branch 0 (transform) or 1 (gate), (num_tokens, D) fp32."""
    has_bias = bool(flags & BoundaryFlag.BIAS)
    u = F.linear(
        x,
        weights.update_in[branch].float(),
        weights.update_in_bias[branch].float() if has_bias else None,
    )
    u = F.gelu(u) if flags & BoundaryFlag.GELU else F.silu(u)
    z = u @ weights.update_out[branch].float()
    return z + weights.update_out_bias[branch].float() if has_bias else z
