"""Compiles the CUDA kernels for the CPU, under tests/support/cuda_emulator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shadow_kernels.build import find_sources

EMULATOR = Path(__file__).parent / "cuda_emulator"


def compile_kernels(
    folder: Path, program: str, sources: Path | None = None, flags: Sequence[str] = ()
) -> ctypes.CDLL:
    """Compile kernels and emulator and load them.

    Args:
        folder: where the library is written.
        program: file beside the emulator that calls the kernels.
        sources: another folder than the package's `kernels/csrc`.
        flags: further ones of the compiler.

    Raises:
        RuntimeError: no compiler, or what it said.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no g++; install Debian's build-essential")
    output = folder / "libemulated.so"
    command = [
        compiler, "-std=c++20", "-O1", "-shared", "-fPIC",
        # a wide access beside its alignment faults on the device, and here too
        "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", *flags,
        "-include", str(EMULATOR / "emulator.h"),
        f"-I{EMULATOR}", f"-I{(sources or find_sources()) / 'include'}",
        str(EMULATOR / program), "-o", str(output),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr[-4000:])
    return ctypes.CDLL(str(output))
