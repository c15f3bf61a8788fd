"""Argument validation of the operators, in one error style: name, expected, got.

Expected shapes are compared first and explained only on failure, so a check costs a few microseconds per call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SUPPORTED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class KernelError(Exception):
    """Base of every error that the operators raise on purpose.

    KernelError
    ├── ShapeError                a tensor has the wrong shape or memory layout
    ├── UnsupportedDtypeError     a tensor has a dtype that the operator does not take
    └── BackendUnavailableError   the named backend cannot run here
    """


class ShapeError(KernelError, ValueError):
    """A tensor has the wrong shape or memory layout."""


class UnsupportedDtypeError(KernelError, TypeError):
    """A tensor has a dtype that the operator does not take."""


class BackendUnavailableError(KernelError, RuntimeError):
    """The backend named by the caller cannot run on these tensors or on this machine."""


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise ShapeError unless `tensor` has exactly the shape `expected`."""
    if tensor.shape != expected:
        raise ShapeError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")


def check_dtype(name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise UnsupportedDtypeError unless `tensor` has one of the `allowed` dtypes."""
    if tensor.dtype not in allowed:
        expected = " or ".join(str(dtype) for dtype in allowed)
        raise UnsupportedDtypeError(f"{name} must be {expected}, got {tensor.dtype}")


def check_inner_contiguous(name: str, tensor: torch.Tensor) -> None:
    """Raise ShapeError unless every dimension but the first is contiguous; the first may have any stride."""
    expected = 1
    for size, stride in zip(tensor.shape[:0:-1], tensor.stride()[:0:-1], strict=True):
        if size != 1 and stride != expected:
            raise ShapeError(
                f"{name} must be contiguous in all but its first dimension, got {tensor.stride()}"
            )
        expected *= size


def check_stack(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Check one weight stack (num_adapter_slots, ...): shape, model dtype, contiguous inner dimensions."""
    check_shape(name, tensor, shape)
    check_dtype(name, tensor, (dtype,))
    check_inner_contiguous(name, tensor)
