"""Registration of the operators in the torch namespace `shadow`, and the choice of the backend.

`torch.ops.shadow.<op>` picks the backend by device: CPU tensors run `cpu.py`, CUDA tensors `cuda.py` where the library
has been built and has a kernel for the sizes, else `triton.py`. The front functions of the package take an explicit
backend too, which fails loudly where it cannot run.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch

from shadow_kernels.checks import BackendUnavailableError
from shadow_kernels.ops import (
    boundary,
    decode_attention,
    dense_linear,
    silu_and_mul,
    slot_linear,
)
from shadow_kernels.ops.boundary import norm
from shadow_kernels.segments import Grouping

Backend = Literal["auto", "cpu", "cuda", "triton"]

_BACKENDS: dict[str, tuple[Backend, ...]] = {
    "boundary": ("cpu", "cuda", "triton"),
    "decode_attention": ("cuda",),
    "dense_linear": ("cuda",),
    "silu_and_mul": ("cuda",),
    "slot_linear": ("cpu", "cuda", "triton"),
}
_CANDIDATES: dict[str, tuple[Backend, ...]] = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
_logger = logging.getLogger(__name__)


@cache
def get_backend(op: str, backend: Backend, device_type: str) -> ModuleType:
    """Return the module that runs `op`, a folder of ops; the choice is logged once.

    Raises:
        BackendUnavailableError: no backend of that name, none for the device, or its compiler or library is missing.
    """
    candidates = _CANDIDATES.get(device_type, ()) if backend == "auto" else (backend,)
    names = [name for name in candidates if name in _BACKENDS[op]]
    if not names:
        raise BackendUnavailableError(
            f"no backend {backend!r} of {op} for device type {device_type!r}"
        )
    for name in names:
        module = _import_backend(op, name)
        if name == "cpu" or module.can_run_on(device_type):
            _logger.debug("operator %s on %s runs backend %s", op, device_type, name)
            return module
    raise BackendUnavailableError(
        f"backend {names[-1]!r} of {op} cannot run on device type {device_type!r}"
    )


def _import_backend(op: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(f"shadow_kernels.ops.{op}.{name}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend {name!r} of {op} cannot be imported: {error}"
        ) from error


def _backend_with_kernel(
    op: str, backend: Backend, device_type: str, tensors: tuple[Any, ...], sizes: str
) -> ModuleType:
    """Return the module for a call: Triton's where the device's own has no kernel for these tensors."""
    module = get_backend(op, backend, device_type)
    if not hasattr(module, "has_kernel_for") or module.has_kernel_for(*tensors):
        return module
    if backend == "auto":
        return get_backend(op, "triton", device_type)
    raise BackendUnavailableError(
        f"backend {backend!r} of {op} has no kernel for {sizes} on this device"
    )


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
    sizes = f"gate size {weights.update_in.shape[2]}, rank {weights.down.shape[1]} and hidden size {hidden.shape[1]}"
    module = _backend_with_kernel("boundary", backend, hidden.device.type, (hidden, weights), sizes)
    module.boundary_(hidden, residual, state, grouping, weights)


def run_boundary_rms_norm_(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    state: torch.Tensor,
    grouping: Grouping,
    weights: boundary.BoundaryWeights,
    rms_weight: torch.Tensor,
    rms_eps: float,
    *,
    backend: Backend = "auto",
) -> None:
    """Check and run `boundary_rms_norm_` on one backend; only the norm when the step has no adapter token."""
    module = _find_norm(hidden, residual, rms_weight, backend)
    has_adapter_tokens = int(grouping.host_counts[0]) != 0
    if module is not norm and has_adapter_tokens and module.has_kernel_for(hidden, weights):
        boundary.check_arguments(hidden, residual, state, len(grouping.slot_starts) - 1, weights)
        module.boundary_rms_norm_(hidden, residual, state, grouping, weights, rms_weight, rms_eps)
        return
    run_boundary_(hidden, residual, state, grouping, weights, backend=backend)
    module.add_rms_norm_(hidden, residual, rms_weight, rms_eps)


def run_add_rms_norm_(
    hidden: torch.Tensor, residual: torch.Tensor, rms_weight: torch.Tensor, rms_eps: float
) -> None:
    """Check and run `add_rms_norm_`, with torch where the device has no kernel for it."""
    _find_norm(hidden, residual, rms_weight).add_rms_norm_(hidden, residual, rms_weight, rms_eps)


def _find_norm(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    rms_weight: torch.Tensor,
    backend: Backend = "auto",
) -> ModuleType:
    """Check what the norm reads and return the module that runs it: torch's where a backend has no kernel for it."""
    boundary.check_norm_arguments(hidden, residual, rms_weight)
    module = get_backend("boundary", backend, hidden.device.type)
    has_norm = hasattr(module, "takes_norm") and module.takes_norm(hidden, residual, rms_weight)
    return module if has_norm else norm


def has_fast_rms_norm(device_type: str, dtype: torch.dtype, hidden_size: int) -> bool:
    """Whether `boundary_rms_norm_` has a kernel of its own for the norm, so that it is worth giving it away."""
    module = _find_kernels("boundary", device_type)
    answer: bool = hasattr(module, "has_norm_for") and module.has_norm_for(dtype, hidden_size)  # type: ignore[union-attr]
    return answer


def run_slot_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grouping: Grouping,
    first_slot: int,
    *,
    extents: torch.Tensor | None = None,
    num_chunks: int = 1,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Check and run `slot_linear` on one backend; only zeroes the output when the step has no adapter token."""
    if int(grouping.host_counts[0]) == 0:
        return x.new_zeros(x.shape[0], weight.shape[1])
    num_slots = len(grouping.slot_starts) - 1
    slot_linear.check_arguments(x, weight, bias, extents, num_chunks, num_slots, first_slot)
    sizes = f"{x.shape[0]} tokens and {x.shape[1]} inputs of {x.dtype} in this layout"
    module = _backend_with_kernel("slot_linear", backend, x.device.type, (x, weight), sizes)
    result: torch.Tensor = module.slot_linear(
        x, weight, bias, extents, num_chunks, grouping, first_slot
    )
    return result


def run_dense_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, backend: Backend = "auto"
) -> torch.Tensor:
    """Check and run `dense_linear` on one backend; with "auto", torch's own product where there is no kernel."""
    dense_linear.check_arguments(x, weight, bias)
    module = _find_kernels("dense_linear", x.device.type, backend)
    if module is not None and module.has_kernel_for(x, weight, bias):
        result: torch.Tensor = module.dense_linear(x, weight, bias)
        return result
    if backend != "auto":
        raise BackendUnavailableError(
            f"backend {backend!r} of dense_linear has no kernel for {x.shape[0]} tokens and a weight of "
            f"{tuple(weight.shape)} in {x.dtype} in this layout on this device"
        )
    return torch.nn.functional.linear(x, weight, bias)


def has_fast_dense_linear(weight: torch.Tensor) -> bool:
    """Whether steps of few tokens have a kernel here for a weight (N, K) that is faster than torch's product."""
    module = _find_kernels("dense_linear", weight.device.type)
    return module is not None and module.is_worth_while(weight)


def run_silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Check and run `silu_and_mul`, with torch where the device has no kernel for it."""
    silu_and_mul.check_arguments(x)
    module = _find_kernels("silu_and_mul", x.device.type)
    if module is None or not module.has_kernel_for(x):
        return silu_and_mul.silu_and_mul(x)
    result: torch.Tensor = module.silu_and_mul(x)
    return result


def has_fast_silu_and_mul(device_type: str) -> bool:
    """Whether the device has a kernel for `silu_and_mul`."""
    return _find_kernels("silu_and_mul", device_type) is not None


def run_decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    arrivals: torch.Tensor,
) -> None:
    """Check and run `decode_attention`."""
    decode_attention.check_arguments(query, key_cache, value_cache, block_table, seq_lens, out)
    module = get_backend("decode_attention", "auto", query.device.type)
    if not module.has_kernel_for(query, key_cache, value_cache, out):
        raise BackendUnavailableError(
            f"decode_attention has no kernel for queries of {tuple(query.shape)} in {query.dtype} over a cache of "
            f"{tuple(key_cache.shape)} in this layout on this device"
        )
    module.decode_attention(
        query, key_cache, value_cache, block_table, seq_lens, scale, out, arrivals
    )


def takes_decode_attention(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, out: torch.Tensor
) -> bool:
    """Whether the device has a kernel of `decode_attention` for these tensors."""
    module = _find_kernels("decode_attention", query.device.type)
    return module is not None and module.has_kernel_for(query, key_cache, value_cache, out)


def has_fast_decode_attention(
    device_type: str, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_size: int
) -> bool:
    """Whether the device has a kernel of `decode_attention` for these sizes and usual layouts of a cache."""
    module = _find_kernels("decode_attention", device_type)
    return module is not None and module.has_kernel_of(dtype, num_heads, num_kv_heads, head_size)


def new_arrivals(device: torch.device) -> torch.Tensor:
    """Return what a caller of `decode_attention` keeps between calls.

    Raises: BackendUnavailableError.
    """
    answer: torch.Tensor = get_backend("decode_attention", "auto", device.type).new_arrivals(device)
    return answer


@cache
def _find_kernels(op: str, device_type: str, backend: Backend = "auto") -> ModuleType | None:
    """Return the module with an operator's kernels; None where "auto" finds none, as torch does the same."""
    try:
        return get_backend(op, backend, device_type)
    except BackendUnavailableError:
        if backend != "auto":
            raise
        return None


def compile_slot_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grouping: Grouping,
    first_slot: int,
    max_tokens: int,
    *,
    extents: torch.Tensor | None = None,
    num_chunks: int = 1,
) -> None:
    """Compile ahead what `slot_linear` needs for these weights at any number of tokens up to `max_tokens`.

    Without it the first step of a new size waits for the compiler, and every request of the engine with it. Nothing is
    launched. Does nothing where nothing is compiled (CPU).

    Raises: BackendUnavailableError.
    """
    module = get_backend("slot_linear", "auto", weight.device.type)
    if hasattr(module, "compile_ahead"):
        module.compile_ahead(weight, bias, extents, num_chunks, grouping, first_slot, max_tokens)


def _boundary_kernel(
    hidden: torch.Tensor, residual: torch.Tensor | None, state: torch.Tensor, *tensors: torch.Tensor
) -> None:
    grouping, weights = Grouping(*tensors[:5]), boundary.BoundaryWeights(*tensors[5:])
    run_boundary_(hidden, residual, state, grouping, weights)


def _boundary_norm_kernel(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    state: torch.Tensor,
    *tensors: torch.Tensor | float,
) -> None:
    grouping, weights = Grouping(*tensors[:5]), boundary.BoundaryWeights(*tensors[5:-2])  # type: ignore[arg-type]
    run_boundary_rms_norm_(hidden, residual, state, grouping, weights, *tensors[-2:])  # type: ignore[arg-type]


def _boundary_fake(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    *tensors: torch.Tensor | float,
) -> None:
    """Mutates only: nothing to infer."""


def _slot_linear_kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    extents: torch.Tensor | None,
    num_chunks: int,
    *grouping_and_first_slot: torch.Tensor | int,
) -> torch.Tensor:
    *tensors, first_slot = grouping_and_first_slot
    return run_slot_linear(
        x,
        weight,
        bias,
        Grouping(*tensors),  # type: ignore[arg-type]
        first_slot,  # type: ignore[arg-type]
        extents=extents,
        num_chunks=num_chunks,
    )


def _slot_linear_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *rest: torch.Tensor | int | None,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _dense_linear_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _add_norm_fake(*_: torch.Tensor | float) -> None:
    return None


def _silu_and_mul_fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


_library = torch.library.Library("shadow", "FRAGMENT")


def register_operators() -> None:
    """Define the operators and register both backends and the shape functions. Idempotent."""
    for name, schema, kernel, fake in (
        (boundary.NAME, boundary.SCHEMA, _boundary_kernel, _boundary_fake),
        (boundary.NORM_NAME, boundary.NORM_SCHEMA, _boundary_norm_kernel, _boundary_fake),
        (slot_linear.NAME, slot_linear.SCHEMA, _slot_linear_kernel, _slot_linear_fake),
        (boundary.ADD_NORM_NAME, boundary.ADD_NORM_SCHEMA, run_add_rms_norm_, _add_norm_fake),
        (silu_and_mul.NAME, silu_and_mul.SCHEMA, run_silu_and_mul, _silu_and_mul_fake),
        (dense_linear.NAME, dense_linear.SCHEMA, run_dense_linear, _dense_linear_fake),
    ):
        if hasattr(torch.ops.shadow, name):
            continue
        # inductor must hand over weight views as they are, not copies in a layout of its choice
        _library.define(schema, tags=(torch.Tag.needs_exact_strides,))
        _library.impl(name, kernel, "CPU")
        _library.impl(name, kernel, "CUDA")
        torch.library.register_fake(f"shadow::{name}", fake, lib=_library)
