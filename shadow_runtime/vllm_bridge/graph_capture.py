"""Capturing every CUDA graph twice, with adapters and without, in less than twice the time.

Runs in: GPU worker with vLLM's V2 model runner.

vLLM runs a batch once to warm up and then captures it, for every size with adapters and again without, and does all of
it for graphs of pieces once more to see how much memory they take. But what runs without adapters runs with them as
well, so that a size that was warmed up is warm, and its graphs take no more memory without than with. The graphs that
serve are the same, all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    ModelCudaGraphManager,
)

from shadow_runtime.errors import UnsupportedStackError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

_Forward = Callable[[CUDAGraphMode], None]


def replace_capture(runner: GPUModelRunner) -> None:
    """Have a model runner capture as described above (one instance attribute is replaced)."""
    runner.capture_model = partial(_capture_model, runner, runner.capture_model)  # type: ignore[method-assign]


def _capture_model(
    runner: GPUModelRunner, capture: Callable[..., int], *, profile_only: bool = False
) -> int:
    """Capture the model's graphs with vLLM's own `capture`; returns bytes, estimated where they are profiled."""
    manager = runner.cudagraph_manager
    if manager is None:  # vLLM makes it with the KV cache
        raise UnsupportedStackError("vLLM captures graphs before it has made their manager")
    if profile_only:
        return _profile(manager, capture)
    manager.__class__ = WarmModelCudaGraphManager
    return capture(profile_only=False)


def _profile(manager: ModelCudaGraphManager, capture: Callable[..., int]) -> int:
    """Return the bytes that the graphs will take, measured for those with the most adapters.

    vLLM itself takes two samples of the graphs of whole steps and reckons with their number; these are not counted
    again. The graphs of pieces are all captured, and their memory counts once for each kind of them.
    """
    with _only_most_adapters(manager) as num_kinds:
        num_bytes = capture(profile_only=True)
    pieces = num_bytes - sum(manager._capture_mem_samples or [])
    return num_bytes + max(pieces, 0) * (num_kinds - 1)


@contextmanager
def _only_most_adapters(manager: ModelCudaGraphManager) -> Iterator[int]:
    """Have a manager know no graphs but those with the most adapters; yields how many kinds there are."""
    kinds, descs = set(manager.lora_capture_cases), manager._capture_descs
    most = max(kinds)
    manager._capture_descs = {
        mode: [desc for desc in of_mode if desc.num_active_loras == most]
        for mode, of_mode in descs.items()
    }
    try:
        yield len(kinds)
    finally:
        manager._capture_descs = descs


class _WarmCudaGraphManager(CudaGraphManager):
    """Captures the graphs of a size that has been warmed up without warming it up again."""

    def capture(
        self,
        create_forward_fn: Callable[..., _Forward],
        progress_bar_desc: str = "Capturing CUDA graphs",
    ) -> None:
        """Capture as vLLM does, of each size the graph with the most adapters first."""
        for descs in self._capture_descs.values():
            descs.sort(key=lambda desc: (desc.num_tokens, desc.num_active_loras), reverse=True)
        warm: set[Any] = set()

        def create(desc: BatchExecutionDescriptor, warmup: bool) -> _Forward:
            forward = create_forward_fn(desc, warmup=warmup)
            # Threads that run half a batch each wait for their warm-up: it can't be left out.
            if not warmup or desc.num_ubatches > 1:
                return forward
            # The first graph of a kind is warmed up in any case: that loads the kernels that only it runs.
            facts = {replace(desc, num_active_loras=0), (desc.cg_mode, desc.num_active_loras)}
            is_warm = facts <= warm
            warm.update(facts)
            return partial(_only_captured, forward) if is_warm else forward

        super().capture(create, progress_bar_desc)


def _only_captured(forward: _Forward, mode: CUDAGraphMode) -> None:
    """Run a forward unless it would warm up; a graph of pieces is captured by a forward in that mode."""
    if mode != CUDAGraphMode.NONE:
        forward(mode)


class WarmModelCudaGraphManager(ModelCudaGraphManager, _WarmCudaGraphManager):
    """vLLM's manager of the model's graphs, whose `super().capture` is ours."""
