"""Without asserts: `python -O` refuses what python refuses, so no check is an assert."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optimized_security

SECONDS = 300


def test_every_hostile_adapter_is_refused_without_asserts(originals: Path, tmp_path: Path) -> None:
    script = Path(optimized_security.__file__)
    done = subprocess.run(
        [sys.executable, "-O", script, originals, tmp_path],
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "refused" in done.stdout
