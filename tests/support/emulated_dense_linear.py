"""`dense_linear`'s CUDA kernels on the CPU, under tests/support/cuda_emulator."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch

from emulator import check_run, compile_kernels
from shadow_kernels.testing import assert_guards_intact, guarded


class Cut(NamedTuple):
    """How one kernel is cut, as `dense_linear::Cut` has it; run_dense_linear.cpp lists those that are compiled."""

    num_tokens: int
    num_outputs: int
    split: int


CUTS = [
    Cut(8, 48, 1),
    Cut(8, 40, 2),
    Cut(8, 88, 4),
    Cut(8, 72, 8),
    Cut(32, 40, 2),
    Cut(64, 40, 2),
    Cut(64, 152, 1),
]


def compile_dense_linear(folder: Path, sources: Path | None = None) -> ctypes.CDLL:
    """Compile the kernels to a library in `folder`; `sources` replace the package's `kernels/csrc`."""
    library = compile_kernels(folder, "run_dense_linear.cpp", sources)
    address, number = ctypes.c_void_p, ctypes.c_int
    library.run_dense_linear.argtypes = [
        address, ctypes.c_int64, address, ctypes.c_int64, address, address, number, number, number, ctypes.c_bool,
        number, number, number, ctypes.c_uint32,
    ]  # fmt: skip
    return library


def run_emulated(
    library: ctypes.CDLL,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cut: Cut,
    *,
    seed: int = 0,
) -> torch.Tensor:
    """Return (T, N) after the kernel ran; x holds NaN until the kernel waits for the one in front of it.

    Args:
        library: of `compile_dense_linear`.
        x: (T, K) bf16|fp16.
        weight: (N, K).
        bias: (N,) or None.
        cut: of the kernel.
        seed: of the order in which threads get on.

    Raises:
        AssertionError: it hung, wrote beside its rows or before the kernel in front had ended.
    """
    out = guarded(x.new_full((len(x), len(weight)), torch.nan))
    code = library.run_dense_linear(
        x.data_ptr(), x.stride(0), weight.data_ptr(), weight.stride(0), None if bias is None else bias.data_ptr(),
        out.data_ptr(), len(x), *weight.shape, x.dtype == torch.float16, *cut, seed,
    )  # fmt: skip
    check_run(code)
    assert_guards_intact(out)
    return out
