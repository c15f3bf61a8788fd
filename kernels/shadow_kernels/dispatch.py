"""Registration of the operators in the torch namespace `shadow`, and the choice of the backend.

`torch.ops.shadow.<op>` picks the backend by device: CPU tensors run `cpu.py`, CUDA tensors `triton.py`. The front
functions of the package take an explicit backend too, which fails loudly where it cannot run.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Literal

import torch

from shadow_kernels.checks import BackendUnavailableError
from shadow_kernels.ops import boundary, slot_linear
from shadow_kernels.segments import Grouping

Backend = Literal["auto", "cpu", "triton"]

_BACKEND_OF_DEVICE: dict[str, Backend] = {"cpu": "cpu", "cuda": "triton"}
_logger = logging.getLogger(__name__)


@cache
def get_backend(op: str, backend: Backend, device_type: str) -> ModuleType:
    """Return the module that runs `op` ("boundary" or "slot_linear"); the choice is logged once.

    Raises:
        BackendUnavailableError: no backend of that name, none for the device, or its compiler is missing.
    """
    chosen = _BACKEND_OF_DEVICE.get(device_type) if backend == "auto" else backend
    if chosen not in ("cpu", "triton"):
        raise BackendUnavailableError(
            f"no backend {backend!r} of {op} for device type {device_type!r}"
        )
    try:
        module = importlib.import_module(f"shadow_kernels.ops.{op}.{chosen}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend {chosen!r} of {op} cannot be imported: {error}"
        ) from error
    if chosen == "triton" and not module.can_run_on(device_type):
        raise BackendUnavailableError(
            f"backend 'triton' of {op} cannot run on device type {device_type!r}"
        )
    _logger.debug("operator %s on %s runs backend %s", op, device_type, chosen)
    return module


def run_boundary_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    grouping: Grouping,
    weights: boundary.BoundaryWeights,
    *,
    backend: Backend = "auto",
) -> None:
    """Check and run `boundary_` on one backend; leaves before any launch when the step has no adapter token."""
    if int(grouping.host_counts[0]) == 0:
        return
    boundary.check_arguments(hidden, residual, state, len(grouping.slot_starts) - 1, weights)
    get_backend("boundary", backend, hidden.device.type).boundary_(
        hidden, residual, state, grouping, weights
    )


def run_slot_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grouping: Grouping,
    first_slot: int,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Check and run `slot_linear` on one backend; only zeroes the output when the step has no adapter token."""
    if int(grouping.host_counts[0]) == 0:
        return x.new_zeros(x.shape[0], weight.shape[1])
    slot_linear.check_arguments(x, weight, bias, len(grouping.slot_starts) - 1, first_slot)
    module = get_backend("slot_linear", backend, x.device.type)
    result: torch.Tensor = module.slot_linear(x, weight, bias, grouping, first_slot)
    return result


def _boundary_kernel(
    hidden: torch.Tensor, residual: torch.Tensor | None, state: torch.Tensor, *tensors: torch.Tensor
) -> None:
    grouping, weights = Grouping(*tensors[:5]), boundary.BoundaryWeights(*tensors[5:])
    run_boundary_(hidden, residual, state, grouping, weights)


def _boundary_fake(
    hidden: torch.Tensor, residual: torch.Tensor | None, state: torch.Tensor, *tensors: torch.Tensor
) -> None:
    """Mutates only: nothing to infer."""


def _slot_linear_kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *grouping_and_first_slot: torch.Tensor | int,
) -> torch.Tensor:
    *tensors, first_slot = grouping_and_first_slot
    # schema without adapter_slots: the operator follows the tiles, not the tokens
    return run_slot_linear(x, weight, bias, Grouping(tensors[0], *tensors), first_slot)  # type: ignore[arg-type]


def _slot_linear_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *grouping_and_first_slot: torch.Tensor | int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


_library = torch.library.Library("shadow", "FRAGMENT")


def register_operators() -> None:
    """Define the operators and register both backends and the shape functions. Idempotent."""
    for op, kernel, fake in (
        (boundary, _boundary_kernel, _boundary_fake),
        (slot_linear, _slot_linear_kernel, _slot_linear_fake),
    ):
        if hasattr(torch.ops.shadow, op.NAME):
            continue
        # inductor must hand over weight views as they are, not copies in a layout of its choice
        _library.define(op.SCHEMA, tags=(torch.Tag.needs_exact_strides,))
        _library.impl(op.NAME, kernel, "CPU")
        _library.impl(op.NAME, kernel, "CUDA")
        torch.library.register_fake(f"shadow::{op.NAME}", fake, lib=_library)
