"""The device memory of all slots: one tensor per kind, the slot as the first dimension.

Runs in: GPU worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shadow_kernels import BoundaryWeights
from shadow_runtime.config import CacheGeometry, ShadowConfig
from shadow_runtime.slots.image import SlotImage
from shadow_runtime.slots.layout import (
    ShardPlan,
    backbone_shape,
    backbone_stacks,
    boundary_stacks,
    extent_stacks,
)


class TensorStacks(nn.Module):
    """Named tensors of shape (num_slots, ...), zero at start.

    They are buffers, not parameters: a weight loader must not look for them in the base's checkpoint, and the engine's
    memory profile counts them since they are allocated with the model.
    """

    def __init__(
        self,
        num_slots: int,
        stacks: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        integers: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Allocate them; `integers` are int32 whatever the dtype of the others."""
        super().__init__()
        kinds = {name: (dtype, dims) for name, dims in stacks.items()}
        kinds |= {name: (torch.int32, dims) for name, dims in (integers or {}).items()}
        self._attributes = {name: name.replace(".", "__") for name in kinds}
        for name, (kind, dims) in kinds.items():
            self.register_buffer(
                self._attributes[name], torch.zeros(num_slots, *dims, dtype=kind), persistent=False
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the stack of that name, (num_slots, ...)."""
        return self.get_buffer(self._attributes[name])

    def find(self, name: str) -> torch.Tensor | None:
        """Return the stack of that name, or None when this class has none."""
        attribute = self._attributes.get(name)
        return None if attribute is None else self.get_buffer(attribute)

    def write(self, slot: int, tensors: dict[str, torch.Tensor]) -> None:
        """Copy an image into a slot; asynchronous when the image is pinned, ordered before later kernels.

        Raises:
            ValueError: a tensor has not the stack's shape and dtype.
        """
        for name, tensor in tensors.items():
            target = self[name][slot]
            if (tensor.shape, tensor.dtype) != (target.shape, target.dtype):
                raise ValueError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)} and does not fit its stack"
                )
            if target.is_cpu:
                # One thread: torch's copy would start a team of its own and push the running step off its cores.
                np.copyto(_bytes_of(target), _bytes_of(tensor))
            else:
                target.copy_(tensor, non_blocking=True)


def _bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    return tensor.view(-1).view(torch.uint8).numpy()


class AdapterStacks(nn.Module):
    """All slots of a worker: boundary stacks over every class, backbone stacks per class.

    Attributes:
        boundary: stacks of (num_slots, layers of this stage, ...) and the two shared norm vectors.
        flags: (layers of this stage, num_slots) int32.
        scale: (num_slots,) float32.
        layers: views of the above, one per base layer of this stage: what the boundary operator takes.
        backbones: one `TensorStacks` per slot class; empty on stages without a backbone.
    """

    flags: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, config: ShadowConfig, plan: ShardPlan, hidden_size: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._config = config
        self.boundary = TensorStacks(
            config.num_slots, boundary_stacks(config, hidden_size, plan.num_layers), dtype
        )
        self.register_buffer(
            "flags",
            torch.zeros(plan.num_layers, config.num_slots, dtype=torch.int32),
            persistent=False,
        )
        self.register_buffer(
            "scale", torch.zeros(config.num_slots, dtype=torch.float32), persistent=False
        )
        self.layers = [self._layer(index) for index in range(plan.num_layers)]
        cache = CacheGeometry.of(config.slot_classes)
        backbones = [
            TensorStacks(
                c.num_slots,
                backbone_stacks(backbone_shape(c, cache, plan.size), hidden_size),
                dtype,
                extent_stacks(c.spec),
            )
            for c in (config.slot_classes if plan.has_backbone else ())
        ]
        self.backbones = cast("Sequence[TensorStacks]", nn.ModuleList(backbones))

    def _layer(self, index: int) -> BoundaryWeights:
        per_layer = ("update_in", "update_in_bias", "update_out", "update_out_bias", "down", "up")
        return BoundaryWeights(
            flags=self.flags[index],
            scale=self.scale,
            norm_weight=self.boundary["norm_weight"],
            norm_bias=self.boundary["norm_bias"],
            **{name: self.boundary[name][:, index] for name in per_layer},
        )

    @torch.inference_mode()
    def write(self, slot: int, image: SlotImage) -> None:
        """Copy an image into a slot. Nothing of the slot's previous adapter remains."""
        self.boundary.write(slot, image.boundary)
        self.flags[:, slot].copy_(image.flags, non_blocking=True)
        self.scale[slot].fill_(image.scale)
        if len(self.backbones):
            local = slot - self._config.first_slot(image.class_index)
            self.backbones[image.class_index].write(local, image.backbone)
