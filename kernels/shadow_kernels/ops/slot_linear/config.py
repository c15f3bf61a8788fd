"""Launch configuration of the Triton `slot_linear` and the heuristic that picks it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_DECODE_TOKENS = 64  # up to here reading the weights is all the work


@dataclass(frozen=True, slots=True)
class SlotLinearConfig:
    """How one launch is cut.

    Attributes:
        block_n: outputs that one program computes for its tile.
        block_k: inputs that it reads at a time.
        num_warps, num_stages: warps of a program, depth of its load pipeline.
    """

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def choose_config(num_tokens: int, dtype: torch.dtype) -> SlotLinearConfig:
    """Return the launch configuration: narrow programs in decode, so that one token's weights fill the device.

    block_k is the same for every number of tokens: a row's sum runs in the same order alone and in any batch.
    """
    block_k = 64 if dtype == torch.float32 else 128
    if num_tokens <= _DECODE_TOKENS:
        return SlotLinearConfig(block_n=32, block_k=block_k, num_warps=4, num_stages=4)
    return SlotLinearConfig(block_n=64, block_k=block_k, num_warps=4, num_stages=3)
