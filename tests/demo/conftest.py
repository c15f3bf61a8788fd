"""Puts the demo's training scripts, which are not part of any wheel, on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "server" / "demo"))
