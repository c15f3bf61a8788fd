"""Compiling the backbone's kernels while vLLM compiles and profiles the model.

Runs in: GPU worker.

Both take seconds, and most of a kernel's compilation runs outside Python's lock. The thread has ended before vLLM looks
at the memory that is left and before it captures graphs, during which no other thread may load code onto the device.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadow_runtime.vllm_bridge.backbone import ShadowBackbone


def compile_behind_profile(runner: Any, backbone: ShadowBackbone, device: torch.device) -> None:
    """Begin to compile; the model runner's profile run returns when it is done (one instance attribute is replaced).

    Args:
        runner: vLLM's model runner, before its profile run.
        backbone: on `device`.
        device: elsewhere than on CUDA devices nothing is compiled, and everything is done when this returns.
    """
    if device.type != "cuda":
        backbone.compile_ahead()
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="shadow-compile")
    compiled = pool.submit(_compile, backbone, device)
    pool.shutdown(wait=False)
    runner.profile_run = partial(_profile_run, runner.profile_run, compiled)


def _compile(backbone: ShadowBackbone, device: torch.device) -> None:
    with torch.cuda.device(device):  # which one is current is a matter of the thread
        backbone.compile_ahead()


def _profile_run(
    profile_run: Callable[..., None], compiled: Future[None], *args: Any, **kwargs: Any
) -> None:
    profile_run(*args, **kwargs)
    compiled.result()
