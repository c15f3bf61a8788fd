"""A linear layer whose weight all tokens share: the base's projections, in steps of few tokens.

Legend: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch

from shadow_kernels import checks

NAME = "dense_linear"

SCHEMA = "dense_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor"


def check_arguments(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise ShapeError or UnsupportedDtypeError, naming the argument, unless all shapes and dtypes agree."""
    checks.check_dtype("x", x, checks.SUPPORTED_DTYPES)
    if x.dim() != 2 or weight.dim() != 2:
        raise checks.ShapeError(
            f"x must be (num_tokens, K) and weight (N, K), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    checks.check_shape("weight", weight, (weight.shape[0], x.shape[1]))
    checks.check_dtype("weight", weight, (x.dtype,))
    if bias is not None:
        checks.check_shape("bias", bias, (weight.shape[0],))
        checks.check_dtype("bias", bias, (x.dtype,))
