"""`slot_linear`'s CUDA kernels on the CPU, under tests/support/cuda_emulator."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import torch

from emulator import check_run, compile_kernels
from shadow_kernels.ops.slot_linear.cuda import Cut
from shadow_kernels.segments import max_tiles
from shadow_kernels.testing import assert_guards_intact, guarded
from slot_linear_case import SlotLinearCase


class _Params(ctypes.Structure):
    """`SlotLinearParams` of kernels/csrc/include/shadow/slot_linear_params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "extents", "out")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("x", "weight", "bias", "extents")),
        *((name, ctypes.c_void_p) for name in ("adapter_slots", "token_order", "slot_starts", "tiles")),
        *(
            (name, ctypes.c_int)
            for name in ("num_tokens", "num_tiles", "first_slot", "num_class_slots", "num_inputs", "num_outputs")
        ),
        *((name, ctypes.c_int) for name in ("chunk_rows", "num_blocks")),
    )  # fmt: skip


def compile_slot_linear(folder: Path, sources: Path | None = None) -> ctypes.CDLL:
    """Compile the kernels to a library in `folder`; `sources` replace the package's `kernels/csrc`."""
    library = compile_kernels(folder, "run_slot_linear.cpp", sources)
    library.run_slot_linear.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, ctypes.c_int, ctypes.c_int,
        ctypes.c_uint32,
    ]  # fmt: skip
    return library


def run_emulated(
    library: ctypes.CDLL, case: SlotLinearCase, cut: Cut, *, num_blocks: int = 3, seed: int = 0
) -> torch.Tensor:
    """Return (num_tokens, N) after the kernel ran; x holds NaN until the kernel waits for the one in front of it.

    Args:
        library: of `compile_slot_linear`.
        case: the call.
        cut: of the kernel.
        num_blocks: that share the work.
        seed: of the order in which threads get on.

    Raises:
        AssertionError: it hung, wrote beside its rows or before the kernel in front had ended.
    """
    x = torch.full_like(case.x, torch.nan)
    out = guarded(case.x.new_full((len(case.x), case.weight.shape[1]), torch.nan))
    grouping = case.segments.grouping
    params = _Params(
        out=out.data_ptr(),
        x=x.data_ptr(),
        x_stride=x.stride(0),
        num_tokens=len(x),
        num_tiles=max_tiles(len(x), len(grouping.slot_starts) - 1),
        first_slot=case.first_slot,
        num_class_slots=len(case.weight),
        num_inputs=x.shape[1],
        num_outputs=case.weight.shape[1],
        chunk_rows=case.weight.shape[1] // case.num_chunks,
        num_blocks=num_blocks,
    )
    for name in ("weight", "bias", "extents"):
        tensor = getattr(case, name)
        if tensor is not None:
            setattr(params, name, tensor.data_ptr())
            setattr(params, f"{name}_stride", tensor.stride(0))
    for name in ("adapter_slots", "token_order", "slot_starts", "tiles"):
        setattr(params, name, getattr(grouping, name).data_ptr())
    code = library.run_slot_linear(
        ctypes.byref(params), case.x.data_ptr(), case.x.numel() * case.x.element_size(),
        x.dtype == torch.float16, *dataclasses.astuple(cut), seed,
    )  # fmt: skip
    check_run(code)
    assert_guards_intact(out)
    return out
