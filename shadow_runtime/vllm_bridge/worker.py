"""The worker class that vLLM is told to use; it installs the residency and answers our RPCs.

Runs in: GPU worker.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from vllm.distributed import get_pp_group
from vllm.platforms import current_platform

from shadow_runtime.artifact import base_geometry
from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge.background_compile import compile_behind_profile
from shadow_runtime.vllm_bridge.dependent_launch import enable_dependent_launch
from shadow_runtime.vllm_bridge.executor import ShadowExecutor
from shadow_runtime.vllm_bridge.models import find_shadow_config
from shadow_runtime.vllm_bridge.request import AdapterSource
from shadow_runtime.vllm_bridge.residency import AdapterResidency, Outcome, find_residency
from shadow_runtime.vllm_bridge.step_wait import wait_without_spinning
from shadow_runtime.vllm_bridge.version import check_version

if TYPE_CHECKING:
    import torch
    from torch import nn
    from vllm.config import VllmConfig

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as _PlatformWorker


def _load_shadow_model(
    self: Any, model: nn.Module, vllm_config: VllmConfig, device: torch.device
) -> nn.Module:
    """Take the place of `LoRAModelRunnerMixin.load_lora_model`: keep the model as it is, install the residency."""
    executor = getattr(model, "shadow", None)
    if not isinstance(executor, ShadowExecutor):
        raise UnsupportedStackError(
            f"{type(model).__name__} has no shadow path: the plugin shadow_runtime is not registered in this process "
            "(is VLLM_PLUGINS set without it?) or the engine was started without its settings"
        )
    if executor.backbone is not None:
        compile_behind_profile(self, executor.backbone, device)
    self.lora_manager = AdapterResidency(
        executor, base_geometry(vllm_config.model_config.hf_config)
    )
    return model


class ShadowWorker(_PlatformWorker):
    """vLLM's own worker with the shadow path's residency and RPC methods."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load the model with our residency instead of vLLM's adapter manager (instance attributes are replaced)."""
        check_version()
        config = find_shadow_config(self.vllm_config)
        # An engine without our settings is refused where its model is there, with the reason.
        if config is not None and config.has_server:
            wait_without_spinning()
        enable_dependent_launch(self.vllm_config.compilation_config, self.device)
        self.model_runner.load_lora_model = types.MethodType(_load_shadow_model, self.model_runner)
        if self.use_v2_model_runner:
            # Imported here: it needs what vLLM's other model runner does without.
            from shadow_runtime.vllm_bridge.graph_capture import replace_capture

            replace_capture(self.model_runner)
        super().load_model(load_dummy_weights=load_dummy_weights)

    def determine_available_memory(self) -> int:
        """Profile memory as vLLM does; returns the bytes for the KV cache."""
        available = super().determine_available_memory()
        runner = self.model_runner
        # vLLM's CPU runner skips its profile run when adapters are on, and with it this allocation of later stages.
        if (
            not get_pp_group().is_first_rank
            and getattr(runner, "intermediate_tensors", None) is None
        ):
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return available

    # All of these return at once; `EngineControl` asks again for what is under way.

    def shadow_load(self, uri: str) -> Outcome:
        """See `AdapterResidency.load`."""
        return self._residency().load(AdapterSource.from_uri(uri))

    def shadow_unload(self, digest: str) -> bool:
        """See `AdapterResidency.unload`."""
        return self._residency().unload(digest)

    def shadow_prefetch(self, digest: str) -> Outcome:
        """See `AdapterResidency.prefetch`."""
        return self._residency().prefetch(digest)

    def shadow_release_slot(self, digest: str) -> None:
        """See `AdapterResidency.release_slot`."""
        self._residency().release_slot(digest)

    def shadow_pin(self, digest: str) -> Outcome:
        """See `AdapterResidency.pin`."""
        return self._residency().pin(digest)

    def shadow_unpin(self, digest: str) -> None:
        """See `AdapterResidency.unpin`."""
        self._residency().unpin(digest)

    def shadow_status(self) -> dict[str, Any]:
        """Return this worker's state; `{"active": False}` when the residency is not installed."""
        residency = find_residency(self.model_runner)
        if residency is None:
            return {"active": False, "rank": self.rank}
        residency.check_integrity()
        return residency.status() | {
            "rank": self.rank,
            "runner": type(self.model_runner).__module__,
        }

    def _residency(self) -> AdapterResidency:
        residency = find_residency(self.model_runner)
        if residency is None:
            raise UnsupportedStackError("the shadow path is not active in this worker")
        return residency
