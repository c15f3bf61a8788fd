"""Launch configuration of the Triton `slot_linear` and the heuristic that picks it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_DECODE_TOKENS = 64  # up to here reading the weights is all the work
_FEW_TOKENS = 4  # below, the weights of a narrow product do not fill a device
_NARROW_OUTPUTS = 2048  # fewer programs of 32 outputs than that do not fill a device
_LONG_INPUTS = 1024  # from here on a row is several blocks of 256 inputs
_TALL_TOKENS = 4096  # from here on a slot has more than one tall block of tokens, as prefills do


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


def choose_config(
    num_tokens: int, num_inputs: int, num_outputs: int, dtype: torch.dtype
) -> SlotLinearConfig:
    """Return the launch configuration, measured by `kernels/benchmarks/slot_linear.py`.

    Decode reads each active slot's weights once: narrow programs, so that a few tokens' weights fill the device, and
    long rows read far ahead. Prefill reads them once for every block of tokens, so those are as tall as the tensor
    cores like them. 32-bit products do not run there and stay small. What a program's pipeline holds fits 99 KiB, the
    shared memory of a block on compute capability 8.6 and 8.9.
    """
    if dtype == torch.float32:
        return SlotLinearConfig(16, 32 if num_tokens <= _DECODE_TOKENS else 64, 64, 4, 3)
    if num_tokens <= 8 * _DECODE_TOKENS:
        return _choose_decode(num_tokens, num_inputs, num_outputs)
    if num_tokens < _TALL_TOKENS:
        return SlotLinearConfig(64, 128, 64, 4, 4)
    return SlotLinearConfig(128, 128, 64, 8, 3)


def all_configs(
    min_tokens: int, max_tokens: int, num_inputs: int, num_outputs: int, dtype: torch.dtype
) -> list[SlotLinearConfig]:
    """Return every configuration that launches of `min_tokens` to `max_tokens` tokens use, once each."""
    changes = (_FEW_TOKENS, _DECODE_TOKENS + 1, 8 * _DECODE_TOKENS + 1, _TALL_TOKENS)
    first_tokens = (min_tokens, *(n for n in changes if min_tokens < n <= max_tokens))
    chosen = (choose_config(n, num_inputs, num_outputs, dtype) for n in first_tokens)
    return list(dict.fromkeys(chosen))


def _choose_decode(num_tokens: int, num_inputs: int, num_outputs: int) -> SlotLinearConfig:
    is_narrow = num_outputs <= _NARROW_OUTPUTS
    if num_inputs < _LONG_INPUTS or (num_tokens > _DECODE_TOKENS and not is_narrow):
        return SlotLinearConfig(16, 64, 128, 4, 4)
    if num_tokens < _FEW_TOKENS and is_narrow:
        return SlotLinearConfig(16, 16, 256, 4, 4)
    return SlotLinearConfig(16, 32, 256, 4, 3)
