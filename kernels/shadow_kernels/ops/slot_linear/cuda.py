"""CUDA version of `slot_linear` for steps of a few tokens (kernels/csrc/slot_linear.cu), bf16 and fp16.

More tokens, short rows, fp32 and rows that do not start on 16 bytes take the Triton version. The library is built by
`shadow_kernels.build`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from shadow_kernels.library import can_run_on as can_run_on
from shadow_kernels.segments import Grouping, max_tiles

MAX_TOKENS = 8
"""Of a step: the rows of half a tensor-core product."""

MIN_INPUTS = 1024
"""Of a row: a block's warps share it. Shorter ones are as fast with the Triton version."""

_NARROW_OUTPUTS = (
    1024  # of so few a block takes small pieces, or multiprocessors are left without work
)
_WIDE_TOKENS = 2  # of more outputs the Triton version reads many adapters' weights faster
_OCTET = 8  # numbers that a lane reads with one instruction
_ALIGNMENT = 16  # bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """How one launch is cut.

    Attributes:
        num_groups: of eight outputs that a block computes at a time.
        num_octets: of eight inputs that a lane reads at a time of each row.
    """

    num_groups: int
    num_octets: int


NARROW_CUT, WIDE_CUT = CUTS = (Cut(1, 2), Cut(2, 2))
"""Those that the library has, for few outputs and for more."""


def choose_cut(num_outputs: int) -> Cut:
    """Return the cut of a launch, measured by `kernels/benchmarks/slot_linear.py`.

    It does not depend on the step: a token's sums run in the same order alone and beside others.
    """
    return NARROW_CUT if num_outputs <= _NARROW_OUTPUTS else WIDE_CUT


def max_tokens(weight: torch.Tensor) -> int:
    """Return up to how many tokens of a step have a kernel here that is worth its while; 0 for none."""
    if weight.shape[-1] < MIN_INPUTS or not _is_wide(weight):
        return 0
    return MAX_TOKENS if weight.shape[1] <= _NARROW_OUTPUTS else _WIDE_TOKENS


def has_kernel_for(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the library has a kernel for this step and this layout."""
    return x.shape[0] <= max_tokens(weight) and _is_wide(x)


def slot_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    grouping: Grouping,
    first_slot: int,
) -> torch.Tensor:
    """Run the operator; arguments as in `shadow_kernels.slot_linear`, already checked. Returns (T, N)."""
    cut = choose_cut(weight.shape[1])
    return launch(x, weight, bias, extents, num_chunks, grouping, first_slot, cut)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    grouping: Grouping,
    first_slot: int,
    cut: Cut,
) -> torch.Tensor:
    """Run the operator with a cut of one's own."""
    out = x.new_empty(len(x), weight.shape[1])
    num_tiles = max_tiles(len(x), len(grouping.slot_starts) - 1)
    torch.ops.shadow_cuda.slot_linear(
        out, x, weight, bias, extents, num_chunks, *grouping[:4], first_slot, num_tiles,
        *dataclasses.astuple(cut),
    )  # fmt: skip
    return out


def compile_ahead(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    grouping: Grouping,
    first_slot: int,
    most_tokens: int,
) -> None:
    """Compile what the Triton version runs for the steps of up to `most_tokens` tokens that have no kernel here."""
    # Imported here: it needs Triton, which a device whose steps all have kernels does not.
    from shadow_kernels.ops.slot_linear import triton

    first = max_tokens(weight) + 1
    if first <= most_tokens:
        triton.compile_ahead(
            weight, bias, extents, num_chunks, grouping, first_slot, most_tokens, first
        )


def _is_wide(tensor: torch.Tensor) -> bool:
    """Whether all rows start on 16 bytes and hold whole groups of eight numbers."""
    return (
        tensor.dtype in (torch.bfloat16, torch.float16)
        and tensor.data_ptr() % _ALIGNMENT == 0
        and tensor.shape[-1] % _OCTET == 0
        and tensor.stride(0) % _OCTET == 0
    )
