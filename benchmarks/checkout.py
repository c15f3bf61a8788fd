"""Makes a checkout importable that is not installed, for this process and for the servers that it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PLACES = [str(_ROOT / name) for name in ("", "clients", "kernels", "server")]


def make_importable() -> None:
    """Put the packages, and what the tests share, on the path."""
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*_PLACES, *filter(None, [inherited])])
    sys.path[:0] = [*_PLACES, str(_ROOT / "tests" / "support")]
