"""Launch configuration of the Triton `boundary_` and the heuristic that picks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["ieee", "tf32"]

_MIN_DOT = 16  # smallest side of a tl.dot operand
_MIN_BLOCK_D = 128  # wider blocks of fp32 products spill registers
_MAX_CHUNKS = 32  # every program of the next launch adds up this many partial sums


@dataclass(frozen=True, slots=True)
class BoundaryConfig:
    """How one launch is cut.

    Attributes:
        block_d: columns of the hidden size that one program owns; a power of two.
        num_chunks: programs per tile, ceil(D / block_d).
        block_chunks: num_chunks rounded up to a power of two, the width of a load over all partial sums.
        block_g, block_r: gate size and rank, padded to a power of two that a product accepts.
        precision: of the products on fp32 operands. tf32 keeps 11 bits of an activation, three more than a
            bf16 store, and every bit of a bf16 weight; fp16 stores as many bits as tf32 keeps, so it takes ieee.
        num_warps: warps of each program.
    """

    block_d: int
    num_chunks: int
    block_chunks: int
    block_g: int
    block_r: int
    precision: Precision
    num_warps: int


def choose_config(
    hidden_size: int, gate_size: int, rank: int, dtype: torch.dtype
) -> BoundaryConfig:
    """Return the launch configuration.

    It never depends on the number of tokens, so a token's sums run in the same order alone and in any batch.
    """
    block_d = max(_MIN_BLOCK_D, _power_of_two(-(-hidden_size // _MAX_CHUNKS)))
    num_chunks = -(-hidden_size // block_d)
    return BoundaryConfig(
        block_d=block_d,
        num_chunks=num_chunks,
        block_chunks=_power_of_two(num_chunks),
        block_g=max(_MIN_DOT, _power_of_two(gate_size)),
        block_r=max(_MIN_DOT, _power_of_two(rank)),
        precision="tf32" if dtype == torch.bfloat16 else "ieee",
        num_warps=8,
    )


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
