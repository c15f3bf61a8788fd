"""An adapter padded to its slot, ready to be copied into the stacks in one pass.

Runs in: GPU worker, loader thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shadow_kernels import BoundaryFlag
from shadow_runtime.artifact.canonical import CanonicalAdapter
from shadow_runtime.config import CacheGeometry, ShadowConfig
from shadow_runtime.slots.layout import (
    BackboneShape,
    ShardPlan,
    backbone_shape,
    backbone_stacks,
    boundary_stacks,
    choose_class,
)
from shadow_runtime.types import AdapterManifest, BackboneSpec

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SlotImage:
    """One worker's padded copy of an adapter in host memory.

    Attributes:
        manifest: of the adapter.
        class_index: slot class that holds it.
        scale: alpha.
        flags: (num_layers of this stage,) int32 bits of `shadow_runtime.slots.layout`.
        boundary, backbone: stack name to tensor of the per-slot shape, model dtype; `backbone` is empty on stages
            without one.
    """

    manifest: AdapterManifest
    class_index: int
    scale: float
    flags: torch.Tensor
    boundary: Tensors
    backbone: Tensors

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in (*self.boundary.values(), *self.backbone.values()))


def build_image(
    adapter: CanonicalAdapter,
    config: ShadowConfig,
    plan: ShardPlan,
    *,
    hidden_size: int,
    dtype: torch.dtype,
    pin: bool = False,
) -> SlotImage:
    """Pad an adapter to the first slot class that holds it.

    Args:
        adapter: validated canonical adapter.
        config: the server's slot classes.
        plan: this worker's part of the model.
        hidden_size: width of the base (D).
        dtype: the model's dtype; stored tensors are rounded to it.
        pin: place the image in pinned memory for asynchronous copies.

    Raises:
        AdapterLimitError: it fits no slot class.
    """
    class_index = choose_class(config, adapter.manifest)
    boundary = _Canvas(boundary_stacks(config, hidden_size, plan.num_layers), dtype, pin)
    _fill_boundary(boundary, adapter, plan)
    backbone: Tensors = {}
    if plan.has_backbone:
        shape = backbone_shape(
            config.slot_classes[class_index], CacheGeometry.of(config.slot_classes), plan.size
        )
        canvas = _Canvas(backbone_stacks(shape, hidden_size), dtype, pin)
        _fill_backbone(canvas, adapter, shape, plan.rank if shape.sharded else 0)
        backbone = canvas.finish()
    flags = _flags(adapter.manifest, plan)
    return SlotImage(
        manifest=adapter.manifest,
        class_index=class_index,
        scale=adapter.manifest.scale,
        flags=flags.pin_memory() if pin else flags,
        boundary=boundary.finish(),
        backbone=backbone,
    )


class _Canvas:
    """Tensors that are written once each: zeros go only where nothing else does, pinned memory is slow to touch."""

    def __init__(self, stacks: dict[str, tuple[int, ...]], dtype: torch.dtype, pin: bool) -> None:
        self._tensors = {
            name: torch.empty(dims, dtype=dtype, device="cpu", pin_memory=pin)
            for name, dims in stacks.items()
        }
        self._blank = set(stacks)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def put(self, name: str, *parts: torch.Tensor) -> None:
        """Copy parts, one below the other, into the leading corner of a tensor, rounding to its dtype."""
        target = self._tensors[name]
        self._blank.discard(name)
        num_rows = sum(part.shape[0] for part in parts)
        if (num_rows, *parts[0].shape[1:]) != target.shape:
            target.zero_()
        row = 0
        for part in parts:
            corner = (slice(row, row + part.shape[0]), *(slice(0, n) for n in part.shape[1:]))
            target[corner].copy_(part)
            row += part.shape[0]

    def finish(self) -> Tensors:
        """Return all tensors, those that were never written as zeros."""
        for name in self._blank:
            self._tensors[name].zero_()
        return self._tensors


def _flags(manifest: AdapterManifest, plan: ShardPlan) -> torch.Tensor:
    bits = [_layer_flags(manifest, layer) for layer in range(*plan.layers)]
    return torch.tensor(bits, dtype=torch.int32)


def _layer_flags(manifest: AdapterManifest, layer: int) -> int:
    if not (manifest.injects[layer] or manifest.updates[layer]):
        return 0
    wanted = {
        BoundaryFlag.INJECT: manifest.injects[layer],
        BoundaryFlag.UPDATE: manifest.updates[layer],
        BoundaryFlag.NORM: manifest.has_norm,
        BoundaryFlag.GELU: manifest.activation == "gelu",
        BoundaryFlag.BIAS: manifest.has_update_bias,
    }
    return sum(flag for flag, is_set in wanted.items() if is_set)


def _fill_boundary(canvas: _Canvas, adapter: CanonicalAdapter, plan: ShardPlan) -> None:
    start, end = plan.layers
    for key, source in adapter.tensors.items():
        name = key.removeprefix("boundary.")
        if name != key and name in canvas:
            canvas.put(name, source if source.dim() == 1 else source[start:end])


def _fill_backbone(
    canvas: _Canvas, adapter: CanonicalAdapter, shape: BackboneShape, rank: int
) -> None:
    spec = adapter.manifest.backbone
    for name in (
        "norm.weight",
        "norm.bias",
        "embed.weight",
        "position_embed.weight",
        "projection.weight",
    ):
        tensor = adapter.tensors.get(f"backbone.{name}")
        if tensor is not None:
            canvas.put(name, tensor)
    for layer in range(spec.num_layers):
        prefix = f"layers.{layer}."
        source_prefix = f"backbone.{prefix}"
        source = {
            k.removeprefix(source_prefix): v
            for k, v in adapter.tensors.items()
            if k.startswith(source_prefix)
        }
        _fill_layer(canvas, prefix, source, _Placement(spec, shape, rank))


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where an adapter's heads and MLP columns go on one rank."""

    spec: BackboneSpec
    shape: BackboneShape
    rank: int

    def heads(self, rows: torch.Tensor, *, is_query: bool) -> torch.Tensor:
        """Spread (heads * head_dim, ...) rows over this rank's heads by whole KV groups; zeros where there is none."""
        spec, shape = self.spec, self.shape
        group = spec.num_heads // spec.num_kv_heads if is_query else 1
        wide_group = shape.num_heads // shape.num_kv_heads if is_query else 1
        rest = rows.shape[1:]
        grouped = rows.reshape(spec.num_kv_heads, group, spec.head_dim, *rest)
        first = self.rank * shape.num_kv_heads
        mine = grouped[first : first + shape.num_kv_heads]
        if (mine.shape[0], group) == (shape.num_kv_heads, wide_group):
            return mine.reshape(-1, *rest)
        wide = rows.new_zeros(shape.num_kv_heads, wide_group, spec.head_dim, *rest)
        wide[: mine.shape[0], :group] = mine
        return wide.reshape(-1, *rest)

    def columns(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this rank's MLP rows of (intermediate, ...), zero-padded to the class's per-rank size."""
        size = self.shape.intermediate_size
        mine = rows[self.rank * size : (self.rank + 1) * size]
        if mine.shape[0] == size:
            return mine
        wide = rows.new_zeros(size, *rows.shape[1:])
        wide[: mine.shape[0]] = mine
        return wide


def _fill_layer(canvas: _Canvas, prefix: str, source: Tensors, place: _Placement) -> None:
    for name, tensor in source.items():
        if name.split(".")[0].endswith("norm"):
            canvas.put(prefix + name, tensor)
    for part in ("weight", "bias"):
        if f"q.{part}" in source:
            heads = [place.heads(source[f"{n}.{part}"], is_query=n == "q") for n in "qkv"]
            canvas.put(f"{prefix}qkv.{part}", *heads)
        if f"up.{part}" in source:
            names = ("gate", "up") if place.shape.spec.mlp == "glu" else ("up",)
            columns = [place.columns(source[f"{n}.{part}"]) for n in names]
            canvas.put(f"{prefix}up.{part}", *columns)
    canvas.put(f"{prefix}o.weight", place.heads(source["o.weight"].t(), is_query=True).t())
    canvas.put(f"{prefix}down.weight", place.columns(source["down.weight"].t()).t())
    for name in ("o.bias", "down.bias"):
        # The ranks' outputs are summed, so only one of them adds the bias.
        if name in source and place.rank == 0:
            canvas.put(prefix + name, source[name])
