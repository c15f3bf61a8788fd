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


def sabotage_sources(folder: Path, header: str, right: str, wrong: str) -> Path:
    """Return a copy of the kernels' sources in `folder`; its `include/shadow/<header>` has `wrong` for `right`.

    Raises:
        AssertionError: `right` does not stand there exactly once.
    """
    sources = folder / "csrc"
    shutil.copytree(find_sources(), sources)
    path = sources / "include" / "shadow" / header
    text = path.read_text()
    if text.count(right) != 1:
        raise AssertionError(f"{right!r} stands in {header} {text.count(right)} times")
    path.write_text(text.replace(right, wrong))
    return sources


def check_run(code: int) -> None:
    """Raise AssertionError for what a program beside the emulator returned, unless it is 0."""
    if code:
        raise AssertionError(
            (
                "the kernel hung",
                "it wrote before the kernel in front had ended",
                "it left what it counts with",
            )[code - 1]
        )
