"""A linear layer whose weight is the token's adapter slot's: the shadow backbone's projections.

Legend: T tokens, K inputs, N outputs, A_c adapter slots of this slot class.

A slot's adapter may be smaller than its slot: its rows are then the first of each of several equal chunks of the N,
its columns the first of the K, and `extents` says how many. What lies beyond is not multiplied.
"""

from __future__ import annotations

import torch

from shadow_kernels import checks

NAME = "slot_linear"

SCHEMA = (
    "slot_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? extents, int num_chunks, Tensor adapter_slots, "
    "Tensor token_order, Tensor slot_starts, Tensor tiles, Tensor host_counts, int first_slot) -> Tensor"
)


def check_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    num_adapter_slots: int,
    first_slot: int,
) -> None:
    """Raise ShapeError or UnsupportedDtypeError, naming the argument, unless all shapes, dtypes and layouts agree."""
    checks.check_dtype("x", x, checks.SUPPORTED_DTYPES)
    if x.dim() != 2 or weight.dim() != 3:
        raise checks.ShapeError(
            f"x must be (num_tokens, K) and weight (A_c, N, K), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    checks.check_inner_contiguous("x", x)
    num_class_slots, num_outputs, _ = weight.shape
    checks.check_stack("weight", weight, (num_class_slots, num_outputs, x.shape[1]), x.dtype)
    if bias is not None:
        checks.check_stack("bias", bias, (num_class_slots, num_outputs), x.dtype)
    if num_chunks < 1 or num_outputs % num_chunks:
        raise checks.ShapeError(f"{num_outputs} outputs are not {num_chunks} equal chunks")
    if extents is not None:
        checks.check_stack("extents", extents, (num_class_slots, 2), torch.int32)
    if not 0 <= first_slot <= first_slot + num_class_slots <= num_adapter_slots:
        raise checks.ShapeError(
            f"slots [{first_slot}, {first_slot + num_class_slots}) are not within the {num_adapter_slots} slots"
        )
