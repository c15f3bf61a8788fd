"""Ahead-of-time build of the CUDA operators: one library for all named architectures and every PyTorch from 2.11 on.

    python -m shadow_kernels.build [--output FILE] [--architectures 80 90a 100a]

Needs nvcc and torch's headers, no GPU. Built again, it returns at once while sources, flags and torch are unchanged.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

_PACKAGE = Path(__file__).parent
LIBRARY = _PACKAGE / "libshadow_kernels.so"
"""Where the package looks for the built library; ignored by git."""

ARCHITECTURES = ("80", "90a", "100a")
"""Compute capabilities that the library holds machine code for."""

_TORCH_TARGET = (
    "0x020b000000000000"  # 2.11: newer symbols of the stable ABI are refused at compile time
)
_SOURCES = (
    "boundary.cu", "decode_attention.cu", "dense_linear.cu", "rms_norm.cu", "silu_and_mul.cu", "slot_linear.cu",
    "binding.cpp",
)  # fmt: skip


class BuildError(RuntimeError):
    """The compiler is missing or refused the sources; the message holds what it said."""


def find_nvcc() -> Path | None:
    """Return the CUDA compiler of CUDA_HOME, the PATH or the usual place, or None."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    candidates = [home / "bin" / "nvcc" for home in homes]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.insert(1 if len(homes) > 1 else 0, Path(on_path))
    return next((path.resolve() for path in candidates if path.exists()), None)


def find_sources() -> Path:
    """Return the folder of the CUDA sources: beside the package in a checkout and in the source distribution."""
    return _PACKAGE.parent / "csrc"


def build(output: Path = LIBRARY, architectures: Sequence[str] = ARCHITECTURES) -> bool:
    """Compile the library to `output`; a stamp beside it tells what it was built from.

    Args:
        output: file to write; it is replaced in one step, so a process that has it loaded is not disturbed.
        architectures: compute capabilities as nvcc spells them, such as "90a".

    Returns:
        Whether anything was compiled.

    Raises:
        BuildError: no nvcc, or the sources do not compile.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("no nvcc in CUDA_HOME, on the PATH or in /usr/local/cuda")
    if not find_sources().is_dir():
        raise BuildError("a wheel holds no CUDA sources; build in a checkout")
    stamp = output.with_suffix(".stamp")
    wanted = _fingerprint(nvcc, architectures)
    if output.exists() and stamp.exists() and stamp.read_text() == wanted:
        return False
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        built = Path(folder) / output.name
        _run(_command(nvcc, built, architectures))
        built.replace(output)
    stamp.write_text(wanted)
    return True


def _command(nvcc: Path, output: Path, architectures: Sequence[str]) -> list[str]:
    sources, torch_root = find_sources(), Path(torch.__file__).parent
    includes = (
        sources,
        sources / "include",
        torch_root / "include",
        torch_root / "include/torch/csrc/api/include",
    )
    return [
        str(nvcc), "-std=c++20", "-O3", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads=0",
        *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures),
        f"-DTORCH_TARGET_VERSION={_TORCH_TARGET}", "-DUSE_CUDA",
        *(f"-I{folder}" for folder in includes),
        "-cudart", "shared", f"-L{nvcc.parent.parent / 'lib64'}", f"-L{torch_root / 'lib'}",
        # torch loads its own libraries with local scope, so the symbols must be named as needed
        "-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu",
        *(str(sources / name) for name in _SOURCES), "-o", str(output),
    ]  # fmt: skip


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def _fingerprint(nvcc: Path, architectures: Sequence[str]) -> str:
    """Return a digest of everything that decides the library's bytes."""
    digest = hashlib.sha256(" ".join([str(nvcc), torch.__version__, *architectures]).encode())
    for path in sorted(p for p in find_sources().rglob("*") if p.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Build from the command line; 0 on success, 1 with the compiler's words otherwise."""
    parser = argparse.ArgumentParser(description="Build the CUDA operators.")
    parser.add_argument("--output", type=Path, default=LIBRARY)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    options = parser.parse_args()
    try:
        build(options.output, options.architectures)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
