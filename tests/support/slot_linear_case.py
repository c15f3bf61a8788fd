"""One call of `slot_linear`: zero-mean inputs, NaN in everything that a correct operator never reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from shadow_kernels import StepSegments
from shadow_kernels.ops.slot_linear.reference import slot_linear_reference
from shadow_kernels.testing import assert_close

_READ_BEYOND = 32  # inputs: a kernel may read so far beyond an adapter's columns, to the end of a block; zeros there


@dataclass(frozen=True)
class SlotLinearCase:
    """Arguments of one call.

    Attributes:
        token_slots: (num_tokens,) int32 slots of the tokens, over all classes.
        x, weight, bias, extents, num_chunks, first_slot: of the operator.
        segments: the step's grouping.
    """

    token_slots: np.ndarray
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    extents: torch.Tensor | None
    num_chunks: int
    first_slot: int
    segments: StepSegments

    def expected(self) -> torch.Tensor:
        """Return (num_tokens, N) as the fp64 oracle has it."""
        return slot_linear_reference(
            self.x, self.weight, self.bias, torch.from_numpy(self.token_slots), self.first_slot,
            self.extents, self.num_chunks,
        )  # fmt: skip

    def assert_correct(self, out: torch.Tensor) -> float:
        """Compare a result with the oracle; returns the worst row's error. Rows of other tokens are exact zeros."""
        expected = self.expected()
        if bool((out[expected.abs().sum(1) == 0] != 0).any()):
            raise AssertionError("a row of zeros is none")
        return assert_close(out, expected, "out")

    def with_slots(self, token_slots: np.ndarray) -> SlotLinearCase:
        """Return the same call for tokens of other slots."""
        segments = StepSegments(
            self.segments.max_tokens, self.segments.num_adapter_slots, self.segments.device
        )
        segments.fill(token_slots)
        return dataclasses.replace(self, token_slots=token_slots, segments=segments)


def make_slot_linear_case(
    token_slots: np.ndarray,
    num_inputs: int,
    num_outputs: int,
    *,
    num_slots: int,
    first_slot: int = 0,
    num_class_slots: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    has_bias: bool = True,
    sizes: list[tuple[int, int]] | None = None,
    num_chunks: int = 1,
    device: str = "cpu",
) -> SlotLinearCase:
    """Build a call.

    Args:
        token_slots: (num_tokens,) int32 in [-1, num_slots).
        num_inputs, num_outputs: K and N.
        num_slots, first_slot, num_class_slots: all slots, and those of the class; None for the rest of them.
        sizes: [rows of a chunk, columns] of the adapters in turn; None for whole ones without extents.
    """
    generator = torch.Generator().manual_seed(len(token_slots))
    num_own = num_slots - first_slot if num_class_slots is None else num_class_slots
    own = torch.from_numpy(token_slots - first_slot)
    x = torch.randn(len(token_slots), num_inputs, generator=generator).to(dtype)
    x[(own < 0) | (own >= num_own)] = torch.nan
    storage = torch.full((num_own, 2, num_outputs, num_inputs), torch.nan, dtype=dtype)
    values = torch.randn(num_own, num_outputs, num_inputs, generator=generator) * num_inputs**-0.5
    is_used = torch.isin(torch.arange(num_own), own)
    storage[is_used, 1] = values[is_used].to(dtype)
    bias = torch.randn(num_own, num_outputs, generator=generator).to(dtype) if has_bias else None
    extents = None
    if sizes is not None:
        rows = [sizes[slot % len(sizes)] for slot in range(num_own)]
        extents = torch.zeros(num_own, 4, 2, dtype=torch.int32)
        extents[:, 1] = torch.tensor(rows, dtype=torch.int32)
        extents = extents.to(device)[:, 1]
        for slot, (num_rows, num_columns) in enumerate(rows):
            chunks = storage[slot, 1].view(num_chunks, -1, num_inputs)
            chunks[..., num_columns:] = 0.0
            chunks[..., -(-num_columns // _READ_BEYOND) * _READ_BEYOND :] = torch.nan
            chunks[:, num_rows:] = torch.nan
    segments = StepSegments(len(token_slots) + 1, num_slots, device)
    segments.fill(token_slots)
    return SlotLinearCase(
        token_slots, x.to(device), storage.to(device)[:, 1],
        None if bias is None else bias.to(device), extents, num_chunks, first_slot, segments,
    )  # fmt: skip
