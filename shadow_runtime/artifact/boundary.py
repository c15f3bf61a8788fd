"""Packing per-layer tensors of the boundaries into one tensor per kind.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TypeVar

import torch

Index = TypeVar("Index", int, tuple[int, int])


def pack_rows(rows: Mapping[Index, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of `shape` with `rows` at their leading indices and zeros elsewhere.

    Args:
        rows: index of the layer, or of layer and part, to a tensor of the remaining dimensions; the packed
            dtype is the smallest that holds all of theirs exactly.
        shape: of the packed tensor.
    """
    packed = torch.zeros(shape, dtype=_common_dtype(rows))
    for index, row in rows.items():
        packed[index] = row
    return packed


def _common_dtype(rows: Mapping[Index, torch.Tensor]) -> torch.dtype:
    dtypes = [row.dtype for row in rows.values()]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def dead_updates_dropped(injects: tuple[bool, ...], updated: frozenset[int]) -> tuple[bool, ...]:
    """Return for each boundary whether the state is updated there to any effect.

    Args:
        injects: for each base layer, whether a correction is injected before it.
        updated: boundaries (layer index plus one) at which the checkpoint updates the state.

    An update that no later injection reads cannot change any output.
    """
    last = max((layer for layer, is_injected in enumerate(injects) if is_injected), default=-1)
    return tuple(layer in updated and layer <= last for layer in range(len(injects)))
