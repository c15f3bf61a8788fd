"""Runs the Triton tests on a machine without a GPU, under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPS = Path(__file__).parent / "ops"


@pytest.mark.parametrize("op", ["boundary", "slot_linear"])
def test_triton_kernels_pass_under_the_interpreter(op):
    # the mode is fixed when a kernel is declared, so it needs a process of its own
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        str(OPS / op / "test_triton.py"),
    ]
    result = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
