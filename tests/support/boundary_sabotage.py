"""Wrong versions of a `boundary_` call: each must fail the assert against the right call's oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from shadow_kernels import NO_ADAPTER, BoundaryFlag
from shadow_kernels.testing import BoundaryCase

SABOTAGE = {
    "drop the last column": lambda c: c.with_weights(down=_zeroed(c.weights.down, -1)),
    "drop the last rank": lambda c: c.with_weights(up=_zeroed(c.weights.up.transpose(1, 2), -1).transpose(1, 2)),
    "swap two slots": lambda c: _with_slots(c, _swapped(c.token_slots)),
    "one token in a wrong slot": lambda c: _with_slots(c, _one_wrong(c.token_slots)),
    "ignore the scale": lambda c: c.with_weights(scale=torch.ones_like(c.weights.scale)),
    "skip the last token": lambda c: _with_slots(c, np.append(c.token_slots[:-1], np.int32(NO_ADAPTER))),
    "ignore the gate's bias": lambda c: c.with_weights(update_out_bias=_zeroed(c.weights.update_out_bias, 1, dim=1)),
    "ignore the inner bias": lambda c: c.with_weights(update_in_bias=torch.zeros_like(c.weights.update_in_bias)),
    "swap transform and gate": lambda c: c.with_weights(update_out=c.weights.update_out.flip(1).contiguous()),
    "gelu for silu and back": lambda c: c.with_weights(flags=c.weights.flags ^ BoundaryFlag.GELU),
    "no norm": lambda c: c.with_weights(flags=c.weights.flags & ~BoundaryFlag.NORM),
    "no injection": lambda c: c.with_weights(flags=c.weights.flags & ~BoundaryFlag.INJECT),
    "no update": lambda c: c.with_weights(flags=c.weights.flags & ~BoundaryFlag.UPDATE),
    "forget the residual": lambda c: dataclasses.replace(c, residual=None),
}  # fmt: skip


def _zeroed(tensor: torch.Tensor, index: int, dim: int = -1) -> torch.Tensor:
    changed = tensor.clone()
    changed.select(dim, index).zero_()
    return changed


def _swapped(slots: np.ndarray) -> np.ndarray:
    return np.where(slots == 0, 1, np.where(slots == 1, 0, slots)).astype(np.int32)


def _one_wrong(slots: np.ndarray) -> np.ndarray:
    wrong = slots.copy()
    wrong[-1] = (wrong[-1] + 1) % (slots.max() + 1)
    return wrong


def _with_slots(case: BoundaryCase, slots: np.ndarray) -> BoundaryCase:
    case.segments.fill(slots)
    return case
