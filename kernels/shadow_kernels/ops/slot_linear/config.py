"""Launch configuration of the Triton `slot_linear` and the heuristic that picks it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_DECODE_TOKENS = 64  # up to here reading the weights is all the work
_NARROW_OUTPUTS = 2048  # fewer programs of 32 outputs than that do not fill a device


@dataclass(frozen=True, slots=True)
class SlotLinearConfig:
    """How one launch is cut.

    Attributes:
        block_m: tokens of one slot that one program computes, a multiple of `TILE_TOKENS`.
        block_n: outputs that it computes for them.
        block_k: inputs that it reads at a time.
        num_warps, num_stages: warps of a program, depth of its load pipeline.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def choose_config(num_tokens: int, num_outputs: int, dtype: torch.dtype) -> SlotLinearConfig:
    """Return the launch configuration.

    Decode reads each active slot's weights once: narrow programs, so that one token's weights fill the device. Prefill
    reads them once for every block of tokens, so those are as tall as the tensor cores like them. 32-bit products do
    not run there and stay small. What a program's pipeline holds fits 99 KiB, the shared memory of a block on compute
    capability 8.6 and 8.9.

    block_k is the same for every number of tokens: a row's sum takes its inputs in the same order in any batch.
    """
    if dtype == torch.float32:
        return SlotLinearConfig(16, 32 if num_tokens <= _DECODE_TOKENS else 64, 64, 4, 3)
    if num_tokens <= _DECODE_TOKENS:
        return SlotLinearConfig(16, 16 if num_outputs <= _NARROW_OUTPUTS else 32, 128, 4, 4)
    if num_tokens <= 8 * _DECODE_TOKENS:
        return SlotLinearConfig(16, 64, 128, 4, 3)
    return SlotLinearConfig(64, 64, 128, 4, 3)
