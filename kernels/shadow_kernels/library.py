"""The built library of CUDA operators, which all their CUDA versions run."""

from __future__ import annotations

from functools import cache

import torch

from shadow_kernels.build import LIBRARY


@cache
def can_run_on(device_type: str) -> bool:
    """Whether the device is CUDA's and the library has been built; loads it."""
    if device_type != "cuda" or not LIBRARY.exists():
        return False
    torch.ops.load_library(LIBRARY)
    return True
