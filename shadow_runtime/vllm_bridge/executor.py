"""The shadow path of one worker: buffers at fixed addresses, the backbone, and the boundary between base layers.

Runs in: GPU worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_pp_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)

import shadow_kernels
from shadow_runtime.config import ShadowConfig
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.vllm_bridge.backbone import ShadowBackbone

if TYPE_CHECKING:
    from collections.abc import Callable


class ShadowExecutor(nn.Module):
    """Seeds the shadow state before the base's first layer and couples both streams in front of every layer.

    Runs in: GPU worker, step thread only. All tensors keep their address from construction on, so a captured CUDA
    graph replays with whatever adapters `begin_step` names.

    Attributes:
        plan: this worker's part of the model.
        segments: the step's tokens by slot.
        stacks: every slot's weights.
        state: (max_tokens, hidden) shadow state of the running step, model dtype.
    """

    state: torch.Tensor

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: ShadowConfig,
        layers: tuple[int, int],
        hidden_size: int,
        embed: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Allocate everything.

        Args:
            vllm_config: the engine's settings.
            config: the runtime's.
            layers: [first, last) base layer of this pipeline stage.
            hidden_size: of the base.
            embed: the base's input embedding, (num_tokens,) ids to (num_tokens, hidden).
        """
        super().__init__()
        tp_size = get_tensor_model_parallel_world_size()
        self.config = config
        self.hidden_size = hidden_size
        self.dtype = vllm_config.model_config.dtype
        self.plan = ShardPlan(
            layers, get_pp_group().is_first_rank, get_tensor_model_parallel_rank(), tp_size
        )
        max_tokens = _max_step_tokens(vllm_config)
        device = torch.get_default_device()
        self.segments = shadow_kernels.StepSegments(max_tokens, config.num_slots, device=device)
        self.stacks = AdapterStacks(config, self.plan, hidden_size, self.dtype)
        self.register_buffer(
            "state", torch.zeros(max_tokens, hidden_size, dtype=self.dtype), persistent=False
        )
        self.backbone = (
            ShadowBackbone(
                vllm_config=vllm_config,
                config=config,
                stacks=self.stacks,
                segments=self.segments,
                tp_size=tp_size,
                embed=embed,
            )
            if self.plan.has_backbone
            else None
        )

    def begin_step(self, token_slots: np.ndarray) -> None:
        """Name the slot of every token of the coming step; (num_tokens,) int, NO_ADAPTER for none. No device sync."""
        self.segments.fill(token_slots)

    @property
    def is_active(self) -> bool:
        """Whether any token of the step has an adapter. False while vLLM captures its graphs without adapters."""
        return self.segments.num_adapter_tokens > 0

    def seed(self, input_ids: torch.Tensor, positions: torch.Tensor) -> None:
        """Compute the step's initial shadow state from (num_tokens,) ids and positions; first pipeline stage only."""
        if not self.is_active or self.backbone is None:
            return
        self.backbone(input_ids, positions, self.state[: input_ids.shape[0]])

    def receive(self, state: torch.Tensor) -> None:
        """Take over the previous pipeline stage's (num_tokens, hidden) state."""
        self.state[: state.shape[0]].copy_(state)

    def send(self, num_tokens: int) -> torch.Tensor:
        """Return a copy of the step's state (num_tokens, hidden) for the next pipeline stage."""
        return self.state[:num_tokens].clone()

    def slice_of(self, layer: int) -> shadow_kernels.BoundaryWeights:
        """Return the boundary weights in front of base layer `layer` (numbered over the whole model)."""
        return self.stacks.layers[layer - self.plan.layers[0]]

    def cross(
        self,
        weights: shadow_kernels.BoundaryWeights,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> None:
        """Update the shadow state and inject its correction into `hidden`, both in place.

        Args:
            weights: of the layer that runs next.
            hidden: (num_tokens, hidden) what the previous layer returned; mutated.
            residual: (num_tokens, hidden) the addition that vLLM leaves to the next norm, or None.
        """
        torch.ops.shadow.boundary_(hidden, residual, self.state, *self.segments.grouping, *weights)

    def cross_into_norm(
        self,
        weights: shadow_kernels.BoundaryWeights,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rms_weight: torch.Tensor,
        rms_eps: float,
    ) -> None:
        """Do what `cross` does, then the RMS norm that the next layer begins with, in one launch where tokens are few.

        Args:
            weights: of the layer that runs next.
            hidden: (num_tokens, hidden) as in `cross`; becomes the norm.
            residual: (num_tokens, hidden) as in `cross`, there; becomes the sum that the norm is of.
            rms_weight: (hidden,), model dtype.
            rms_eps: added to the mean of squares.
        """
        torch.ops.shadow.boundary_rms_norm_(
            hidden, residual, self.state, *self.segments.grouping, *weights, rms_weight, rms_eps
        )


def _max_step_tokens(vllm_config: VllmConfig) -> int:
    """Return the most tokens that one forward can have, graph padding included."""
    captured = vllm_config.compilation_config.cudagraph_capture_sizes or []
    return max(vllm_config.scheduler_config.max_num_batched_tokens, *captured, 1)
