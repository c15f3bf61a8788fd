"""Vectorised torch version of `boundary_`: a product per active slot, everything else once for all tokens.

Loops over the slots that are active in the step, never over tokens: the tokens of one slot are a span of rows. What a
small model's step costs here is the number of calls, so a span has as few as its own weights need. Computes in fp32
whatever the model dtype is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from shadow_kernels.ops.boundary import NORM_EPS, BoundaryFlag, BoundaryWeights
from shadow_kernels.segments import Grouping


class _Span(NamedTuple):
    """Rows [start, end) of the tokens at hand are those of one slot."""

    slot: int
    start: int
    end: int


def boundary_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    grouping: Grouping,
    weights: BoundaryWeights,
) -> None:
    """Run the operator; arguments as in `shadow_kernels.boundary_`, already checked. Mutates hidden and state."""
    for flags, tokens, spans in _spans_by_flags(grouping, weights.flags):
        own_hidden = hidden.index_select(0, tokens).float()
        h = own_hidden
        if residual is not None:
            h = h + residual.index_select(0, tokens).float()
        s = state.index_select(0, tokens).float()
        if flags & BoundaryFlag.UPDATE:
            s = _updated_state(h, s, flags, weights, spans)
            state.index_copy_(0, tokens, s.to(state.dtype))
        if flags & BoundaryFlag.INJECT:
            own_hidden += _correction(h - s, weights, spans)
            hidden.index_copy_(0, tokens, own_hidden.to(hidden.dtype))


def _spans_by_flags(
    grouping: Grouping, flags: torch.Tensor
) -> Iterator[tuple[BoundaryFlag, torch.Tensor, list[_Span]]]:
    """Yield, for each flags value of the step but 0, its tokens in the order of slots and which rows are whose."""
    starts, of_slot = grouping.slot_starts.tolist(), flags.tolist()
    groups: dict[int, list[_Span]] = {}
    for slot, (start, end) in enumerate(itertools.pairwise(starts)):
        if start < end and of_slot[slot]:
            groups.setdefault(of_slot[slot], []).append(_Span(slot, start, end))
    order = grouping.token_order[: starts[-1]].long()
    for value, spans in groups.items():
        if sum(end - start for _, start, end in spans) == len(order):
            yield BoundaryFlag(value), order, spans
            continue
        ends = itertools.accumulate(end - start for _, start, end in spans)
        own = [
            _Span(slot, end - (b - a), end) for (slot, a, b), end in zip(spans, ends, strict=True)
        ]
        yield BoundaryFlag(value), torch.cat([order[a:b] for _, a, b in spans]), own


def _updated_state(
    h: torch.Tensor,
    s: torch.Tensor,
    flags: BoundaryFlag,
    weights: BoundaryWeights,
    spans: list[_Span],
) -> torch.Tensor:
    """Return s + sigmoid(z_1) * (z_0 - s), (num_tokens, D) fp32."""
    num_tokens, hidden_size = h.shape
    gate_size = weights.update_in.shape[2]
    u = h.new_empty(num_tokens, 2 * gate_size)
    for slot, start, end in spans:
        x = h[start:end]
        if flags & BoundaryFlag.NORM:
            norm = weights.norm_weight[slot].float(), weights.norm_bias[slot].float()
            x = F.layer_norm(x, (hidden_size,), *norm, NORM_EPS)
        torch.mm(x, weights.update_in[slot].flatten(0, 1).float().t(), out=u[start:end])
        if flags & BoundaryFlag.BIAS:
            u[start:end] += weights.update_in_bias[slot].flatten().float()
    u = F.gelu(u) if flags & BoundaryFlag.GELU else F.silu(u)
    branches = u.view(num_tokens, 2, gate_size).transpose(0, 1)
    z = h.new_empty(2, num_tokens, hidden_size)
    for slot, start, end in spans:
        torch.bmm(branches[:, start:end], weights.update_out[slot].float(), out=z[:, start:end])
        if flags & BoundaryFlag.BIAS:
            z[:, start:end] += weights.update_out_bias[slot].float().unsqueeze(1)
    return s + torch.sigmoid(z[1]) * (z[0] - s)


def _correction(
    discrepancy: torch.Tensor, weights: BoundaryWeights, spans: list[_Span]
) -> torch.Tensor:
    """Return scale * (discrepancy @ down.T) @ up, (num_tokens, D) fp32."""
    correction = torch.empty_like(discrepancy)
    scales = weights.scale.tolist()
    for slot, start, end in spans:
        projected = torch.mm(discrepancy[start:end], weights.down[slot].float().t())
        projected *= scales[slot]
        torch.mm(projected, weights.up[slot].float(), out=correction[start:end])
    return correction
