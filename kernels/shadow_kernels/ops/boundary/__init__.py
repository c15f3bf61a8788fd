"""The boundary between two base layers: update the shadow state, then inject its discrepancy into the base's hidden.

Legend: T tokens, D hidden size, A adapter slots, R injection rank, G gate size; h base hidden, s shadow state,
t transform, g gate. The formula is in README.md of this folder.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch

from shadow_kernels import checks

NAME = "boundary_"

SCHEMA = (
    "boundary_(Tensor(a!) hidden, Tensor? residual, Tensor(b!) state, Tensor adapter_slots, Tensor token_order, "
    "Tensor slot_starts, Tensor tiles, Tensor host_counts, Tensor flags, Tensor scale, Tensor norm_weight, "
    "Tensor norm_bias, Tensor update_in, Tensor update_in_bias, Tensor update_out, Tensor update_out_bias, "
    "Tensor down, Tensor up) -> ()"
)

NORM_NAME = "boundary_rms_norm_"

NORM_SCHEMA = (
    SCHEMA.replace(NAME, NORM_NAME, 1)
    .replace("Tensor? residual, Tensor(b!) state", "Tensor(b!) residual, Tensor(c!) state", 1)
    .replace("Tensor up)", "Tensor up, Tensor rms_weight, float rms_eps)", 1)
)
"""The boundary and the RMS norm that the next base layer begins with."""

ADD_NORM_NAME = "add_rms_norm_"

ADD_NORM_SCHEMA = (
    "add_rms_norm_(Tensor(a!) hidden, Tensor(b!) residual, Tensor rms_weight, float rms_eps) -> ()"
)
"""That norm alone."""

NORM_EPS = 1e-5
"""Epsilon of the LayerNorm before transform and gate, as the paper's package has it."""


class BoundaryFlag(enum.IntFlag):
    """What one adapter does at one boundary; a slot with flags 0 is left alone."""

    INJECT = 1
    UPDATE = 2
    NORM = 4
    GELU = 8
    BIAS = 16


class BoundaryWeights(NamedTuple):
    """One layer's boundary tensors of all adapter slots, in the order in which the schema takes them.

    The weight tensors have the model dtype and may be views into (A, L, ...) storage: any stride over A, contiguous
    inner dimensions. What a flag switches off is never read, so it may hold anything.

    Attributes:
        flags: (A,) int32, `BoundaryFlag` bits; without GELU the activation is SiLU.
        scale: (A,) fp32, alpha, the factor on the injected correction.
        norm_weight, norm_bias: (A, D); read with NORM.
        update_in: (A, 2, G, D), rows of [transform, gate].   update_in_bias: (A, 2, G); read with BIAS.
        update_out: (A, 2, G, D), columns of [transform, gate].   update_out_bias: (A, 2, D); read with BIAS.
        down, up: (A, R, D); read with INJECT.
    """

    flags: torch.Tensor
    scale: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    update_in: torch.Tensor
    update_in_bias: torch.Tensor
    update_out: torch.Tensor
    update_out_bias: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor


def check_arguments(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    num_adapter_slots: int,
    weights: BoundaryWeights,
) -> None:
    """Raise ShapeError or UnsupportedDtypeError, naming the argument, unless all shapes, dtypes and layouts agree."""
    _check_hidden(hidden)
    dtype = hidden.dtype
    num_tokens, hidden_size = hidden.shape
    if residual is not None:
        checks.check_stack("residual", residual, (num_tokens, hidden_size), dtype)
    if state.dim() != 2 or state.shape[0] < num_tokens:
        raise checks.ShapeError(
            f"state must be (at least {num_tokens}, {hidden_size}), got {tuple(state.shape)}"
        )
    checks.check_stack("state", state, (state.shape[0], hidden_size), dtype)
    _check_weights(weights, num_adapter_slots, hidden_size, dtype)


def check_norm_arguments(
    hidden: torch.Tensor, residual: torch.Tensor, rms_weight: torch.Tensor
) -> None:
    """Raise ShapeError or UnsupportedDtypeError, naming the argument, unless all that the norm reads agrees."""
    _check_hidden(hidden)
    checks.check_stack("residual", residual, tuple(hidden.shape), hidden.dtype)
    checks.check_shape("rms_weight", rms_weight, (hidden.shape[1],))
    checks.check_stack("rms_weight", rms_weight.unsqueeze(0), (1, hidden.shape[1]), hidden.dtype)


def _check_hidden(hidden: torch.Tensor) -> None:
    checks.check_dtype("hidden", hidden, checks.SUPPORTED_DTYPES)
    if hidden.dim() != 2:
        raise checks.ShapeError(
            f"hidden must be (num_tokens, hidden_size), got {tuple(hidden.shape)}"
        )
    checks.check_inner_contiguous("hidden", hidden)


def _check_weights(
    weights: BoundaryWeights, num_slots: int, hidden_size: int, dtype: torch.dtype
) -> None:
    gate_size, rank = weights.update_in.shape[2], weights.down.shape[1]
    checks.check_shape("flags", weights.flags, (num_slots,))
    checks.check_dtype("flags", weights.flags, (torch.int32,))
    checks.check_shape("scale", weights.scale, (num_slots,))
    checks.check_dtype("scale", weights.scale, (torch.float32,))
    update = (num_slots, 2, gate_size, hidden_size)
    for name, shape in (
        ("norm_weight", (num_slots, hidden_size)),
        ("norm_bias", (num_slots, hidden_size)),
        ("update_in", update),
        ("update_in_bias", update[:3]),
        ("update_out", update),
        ("update_out_bias", (num_slots, 2, hidden_size)),
        ("down", (num_slots, rank, hidden_size)),
        ("up", (num_slots, rank, hidden_size)),
    ):
        checks.check_stack(name, getattr(weights, name), shape, dtype)
