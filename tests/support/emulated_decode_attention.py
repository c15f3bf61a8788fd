"""`decode_attention`'s CUDA kernels on the CPU, under tests/support/cuda_emulator."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch

from emulator import check_run, compile_kernels
from shadow_kernels.testing import assert_guards_intact, guarded
from shadow_kernels.testing_attention import DecodeCase

LEAST_PIECE = 64  # tokens; on the device it is more


class _Params(ctypes.Structure):
    """`DecodeAttentionParams` of kernels/csrc."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "out", "block_table", "lengths")),
        *((name, ctypes.c_void_p) for name in ("partial", "arrivals")),
        *((name, ctypes.c_int64) for name in ("page_stride", "token_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("query_stride", "out_stride", "table_stride")),
        *((name, ctypes.c_int) for name in ("num_sequences", "num_kv_heads", "group_size", "page_shift")),
        *((name, ctypes.c_int) for name in ("spare_pieces", "least_piece")),
        ("scale_log2", ctypes.c_float),
    ]  # fmt: skip


def compile_decode_attention(folder: Path, sources: Path | None = None) -> ctypes.CDLL:
    """Compile the kernels to a library in `folder`; `sources` replace the package's `kernels/csrc`."""
    library = compile_kernels(folder, "run_decode_attention.cpp", sources)
    library.run_decode_attention.argtypes = [
        ctypes.POINTER(_Params), ctypes.c_bool, ctypes.c_int, ctypes.c_uint32,
    ]  # fmt: skip
    return library


def run_emulated(
    library: ctypes.CDLL, case: DecodeCase, spare_pieces: int, *, seed: int = 0
) -> torch.Tensor:
    """Return (T, H * D) after the kernel ran; queries and last tokens hold NaN until it waits for the kernel in front.

    Args:
        library: of `compile_decode_attention`.
        case: of the call, on the CPU.
        spare_pieces: that there may be besides one a sequence.
        seed: of the order in which blocks run and threads get on.

    Raises:
        AssertionError: it hung, wrote beside its rows or before the kernel in front had ended, or left arrivals.
    """
    num_tokens, num_heads, head_size = case.query.shape
    out = guarded(case.query.new_full((num_tokens, num_heads * head_size), torch.nan))
    keys = case.key_cache
    num_kv_heads = keys.shape[2]
    params = _Params(
        case.query.data_ptr(), keys.data_ptr(), case.value_cache.data_ptr(), out.data_ptr(),
        case.block_table.data_ptr(), case.seq_lens.data_ptr(), None, None,
        *keys.stride()[:3], case.query.stride(0), out.stride(0), case.block_table.stride(0),
        num_tokens, num_kv_heads, num_heads // num_kv_heads, keys.shape[1].bit_length() - 1,
        spare_pieces, LEAST_PIECE, case.scale * math.log2(math.e),
    )  # fmt: skip
    code = library.run_decode_attention(
        ctypes.byref(params), case.query.dtype == torch.float16, head_size, seed
    )
    check_run(code)
    assert_guards_intact(out)
    return out
