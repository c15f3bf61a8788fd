"""The product of an MLP's gate, through SiLU, and its other half.

Legend: T tokens, M columns of the MLP.
"""

from __future__ import annotations

import torch

from shadow_kernels import checks

NAME = "silu_and_mul"

SCHEMA = "silu_and_mul(Tensor x) -> Tensor"


def check_arguments(x: torch.Tensor) -> None:
    """Raise ShapeError or UnsupportedDtypeError unless x is (num_tokens, 2 M)."""
    checks.check_dtype("x", x, checks.SUPPORTED_DTYPES)
    if x.dim() != 2 or x.shape[1] % 2:
        raise checks.ShapeError(f"x must be (num_tokens, 2 * columns), got {tuple(x.shape)}")


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Return (T, M) as torch computes it in fp32, rounded once; for what no kernel takes."""
    gate, up = x.float().chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
