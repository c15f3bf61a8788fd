"""What an engine that compiles says of itself, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import CompilationMode


def make_compiling_config(**changes: Any) -> Any:
    """Return the parts of a VllmConfig that decide whose kernels run; names of its parts joined by `__` change them."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(dtype=torch.float32),
        compilation_config=SimpleNamespace(
            mode=CompilationMode.VLLM_COMPILE,
            backend="inductor",
            pass_config=SimpleNamespace(fuse_norm_quant=True, fuse_act_quant=True),
        ),
        kernel_config=SimpleNamespace(
            ir_op_priority=SimpleNamespace(fused_add_rms_norm=["native"]), linear_backend="auto"
        ),
        quant_config=None,
        attention_config=SimpleNamespace(backend=None, backend_per_kind={}),
        device_config=SimpleNamespace(device_type="cpu"),
    )
    for path, value in changes.items():
        *parents, name = path.split("__")
        place: Any = config
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, value)
    return config
