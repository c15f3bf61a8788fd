"""Programmatic dependent launch for the kernels that vLLM compiles around the shadow path.

Runs in: GPU worker.

A decode step is a few hundred kernels of a few microseconds. Where one may be launched while the one in front still
runs, its launch and its first instructions cost nothing; it waits for the other's results itself. The boundary kernels
do that inside CUDA graphs, and inductor can generate the same into its own. Results keep their bits: nothing but the
moment of the launch changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch._inductor.config

if TYPE_CHECKING:
    from vllm.config import CompilationConfig

_OPTION = "triton.enable_pdl"
_MIN_CAPABILITY = (9, 0)


def enable_dependent_launch(config: CompilationConfig, device: torch.device) -> bool:
    """Have inductor's kernels launched as dependents, unless the operator has set the option.

    Must come before the model is built: vLLM's compile cache is keyed by these settings.

    Args:
        config: mutated; `inductor_compile_config` of the operator wins.
        device: the worker's.

    Returns: whether the kernels will be launched so.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return False
    if not hasattr(torch._inductor.config.triton, "enable_pdl"):
        return False
    return bool(config.inductor_compile_config.setdefault(_OPTION, True))
