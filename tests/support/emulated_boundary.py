"""The boundary's CUDA kernels on the CPU, under tests/support/cuda_emulator."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from emulator import compile_kernels
from shadow_kernels.build import find_sources
from shadow_kernels.segments import max_tiles
from shadow_kernels.testing import (
    BoundaryCase,
    BoundaryNormCase,
    assert_guards_intact,
    guarded,
)

_DATA_TYPES = (torch.bfloat16, torch.float16, torch.float32)

Kernel = Literal["range", "unit", "token", "parts", "tile"]
_KERNELS: tuple[Kernel, ...] = get_args(Kernel)  # in the order of run_boundary.cpp


NUM_SLOTS = 7
SIZES = {"hidden_size": 512, "rank": 16, "gate_size": 8, "dtype": torch.bfloat16}
"""Of a call, where a test does not say others."""
TOKEN_SIZES = [
    (512, 8, 16, 2),
    (328, 5, 9, 2),
    (1024, 3, 16, 4),
    (200, 8, 1, 1),
    (2560, 8, 7, 8),
    (1600, 8, 16, 16),
]
"""Hidden size, gate size, rank and blocks of a cluster that the kernel for single tokens takes."""


class _Stack(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("slot_stride", ctypes.c_int64))


_STACKS = (
    "norm_weight",
    "norm_bias",
    "update_in",
    "update_in_bias",
    "update_out",
    "update_out_bias",
    "down",
    "up",
)


class _Params(ctypes.Structure):
    """`BoundaryParams` of kernels/csrc/include/shadow/boundary_params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "residual", "state")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("hidden", "residual", "state")),
        *(
            (name, ctypes.c_void_p)
            for name in ("adapter_slots", "token_order", "slot_starts", "tiles", "flags", "scale")
        ),
        *((name, _Stack) for name in _STACKS),
        ("rms_weight", ctypes.c_void_p),
        ("rms_eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("reduced", "projected")),
        *((name, ctypes.c_int) for name in ("num_tokens", "num_order", "num_slots", "num_tiles")),
        *(
            (name, ctypes.c_int)
            for name in ("hidden_size", "gate_size", "rank", "num_blocks", "num_clusters")
        ),
        ("kept_steps", ctypes.c_int),
    )


class _NormParams(ctypes.Structure):
    """`RmsNormParams` of kernels/csrc/include/shadow/rms_norm_params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "residual", "weight")),
        ("hidden_stride", ctypes.c_int64),
        ("residual_stride", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("num_tokens", ctypes.c_int),
        ("hidden_size", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """How a call is cut over the device.

    Attributes:
        num_blocks: blocks of a cluster.
        kernel: which one: a cluster takes a "range" of units, one "unit" or one "token"; a block a "tile"; or the
            separate "parts", which find num_blocks themselves.
        num_clusters: of the kernels for ranges.
        kept_steps: of a block of a tile: of so many it keeps what it has read of hidden.
        seed: of the order in which threads and copies get on.
    """

    num_blocks: int
    kernel: Kernel
    num_clusters: int = 1
    kept_steps: int = 1
    seed: int = 0


def compile_emulator(
    folder: Path, sources: Path | None = None, *, only: Kernel | None = None
) -> ctypes.CDLL:
    """Compile kernels and emulator and load them.

    Args:
        folder: where the library is written.
        sources: another folder than the package's `kernels/csrc`.
        only: this kernel for bf16 and up to 8 gates alone, which compiles several times as fast.
    """
    flags = [f"-DONLY={_KERNELS.index(only)}"] if only else []
    library = compile_kernels(folder, "run_boundary.cpp", sources, flags)
    library.run_boundary.restype = library.run_add_rms_norm.restype = ctypes.c_bool
    return library


def compile_sabotaged(
    folder: Path, only: Kernel, header: str, right: str, wrong: str
) -> ctypes.CDLL:
    """Compile the sources with one place of a header changed; arguments else as in `compile_emulator`."""
    sources = folder / "csrc"
    shutil.copytree(find_sources(), sources)
    path = sources / "include/shadow" / header
    text = path.read_text()
    if right not in text:
        raise ValueError(f"{header} has no place {right!r}")
    path.write_text(text.replace(right, wrong))
    return compile_emulator(folder, sources, only=only)


def run_emulated(
    library: ctypes.CDLL, case: BoundaryCase, cut: Cut
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (hidden, state) after the kernel ran on guarded copies.

    Raises:
        AssertionError: it hung, wrote beside its rows, or sent something to a block that had ended.
    """
    hidden, state = guarded(case.hidden), guarded(case.state)
    _run(library, _params_of(case, hidden, case.residual, state, cut), hidden.dtype, cut)
    assert_guards_intact(hidden)
    assert_guards_intact(state)
    return hidden, state


def run_emulated_with_norm(
    library: ctypes.CDLL, case: BoundaryNormCase, cut: Cut
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (hidden, residual, state) after the kernel for single tokens, norm included, ran on guarded copies.

    Raises: as `run_emulated`.
    """
    results = hidden, residual, state = case.guarded_tensors()
    params = _params_of(case.boundary, hidden, residual, state, cut)
    params.rms_weight, params.rms_eps = case.rms_weight.data_ptr(), case.rms_eps
    _run(library, params, hidden.dtype, cut)
    for tensor in results:
        assert_guards_intact(tensor)
    return results


def run_emulated_norm(
    library: ctypes.CDLL,
    case: BoundaryNormCase,
    num_octets: int = 1,
    num_warps: int = 2,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (hidden, residual) after the norm's own kernel ran on guarded copies, without a boundary in front.

    Args:
        library: of `compile_emulator`.
        case: whose hidden and residual are taken.
        num_octets: of a thread, 1 or 2.
        num_warps: of a block.
        seed: of the order in which threads get on.

    Raises: as `run_emulated`.
    """
    hidden, residual, _ = case.guarded_tensors()
    params = _NormParams(
        hidden=hidden.data_ptr(),
        residual=residual.data_ptr(),
        weight=case.rms_weight.data_ptr(),
        hidden_stride=hidden.stride(0),
        residual_stride=residual.stride(0),
        eps=case.rms_eps,
        num_tokens=len(hidden),
        hidden_size=hidden.shape[1],
    )
    data_type = _DATA_TYPES.index(hidden.dtype)
    if not library.run_add_rms_norm(ctypes.byref(params), data_type, num_octets, num_warps, seed):
        raise AssertionError("the kernel hung or did not wait for the one in front")
    assert_guards_intact(hidden)
    assert_guards_intact(residual)
    return hidden, residual


def _run(library: ctypes.CDLL, params: _Params, dtype: torch.dtype, cut: Cut) -> None:
    ended = library.run_boundary(
        ctypes.byref(params),
        _DATA_TYPES.index(dtype),
        _KERNELS.index(cut.kernel),
        cut.num_clusters,
        cut.seed,
    )
    if not ended:
        raise AssertionError(
            "the kernel hung or did not wait for the one in front, or a copy was on its way to a block that had ended"
        )


def _params_of(
    case: BoundaryCase,
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    state: torch.Tensor,
    cut: Cut,
) -> _Params:
    grouping, weights = case.segments.grouping, case.weights
    params = _Params(
        hidden=hidden.data_ptr(),
        residual=None if residual is None else residual.data_ptr(),
        state=state.data_ptr(),
        hidden_stride=hidden.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        state_stride=state.stride(0),
        num_tokens=len(hidden),
        num_order=len(grouping.token_order),
        num_slots=len(weights.flags),
        num_tiles=max_tiles(len(hidden), len(weights.flags)),
        hidden_size=hidden.shape[1],
        gate_size=weights.update_in.shape[2],
        rank=weights.down.shape[1],
        num_blocks=cut.num_blocks,
        kept_steps=cut.kept_steps,
    )
    for name in ("adapter_slots", "token_order", "slot_starts", "tiles"):
        setattr(params, name, getattr(grouping, name).data_ptr())
    for name in ("flags", "scale"):
        setattr(params, name, getattr(weights, name).data_ptr())
    for name in _STACKS:
        tensor = getattr(weights, name)
        setattr(params, name, _Stack(tensor.data_ptr(), tensor.stride(0)))
    return params
