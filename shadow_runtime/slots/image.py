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
    boundary = _zeros(boundary_stacks(config, hidden_size, plan.num_layers), dtype, pin)
    _fill_boundary(boundary, adapter, plan)
    backbone: Tensors = {}
    if plan.has_backbone:
        shape = backbone_shape(
            config.slot_classes[class_index], CacheGeometry.of(config.slot_classes), plan.size
        )
        backbone = _zeros(backbone_stacks(shape, hidden_size), dtype, pin)
        _fill_backbone(backbone, adapter, shape, plan.rank if shape.sharded else 0)
    return SlotImage(
        manifest=adapter.manifest,
        class_index=class_index,
        scale=adapter.manifest.scale,
        flags=_flags(adapter.manifest, plan),
        boundary=boundary,
        backbone=backbone,
    )


def _zeros(stacks: dict[str, tuple[int, ...]], dtype: torch.dtype, pin: bool) -> Tensors:
    return {
        name: torch.zeros(dims, dtype=dtype, device="cpu", pin_memory=pin)
        for name, dims in stacks.items()
    }


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


def _fill_boundary(stacks: Tensors, adapter: CanonicalAdapter, plan: ShardPlan) -> None:
    start, end = plan.layers
    for name, target in stacks.items():
        source = adapter.tensors.get(f"boundary.{name}")
        if source is None:
            continue
        _put(target, source if source.dim() == 1 else source[start:end])


def _put(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` into the leading corner of `target`, rounding to its dtype."""
    target[tuple(slice(0, n) for n in source.shape)].copy_(source)


def _fill_backbone(
    stacks: Tensors, adapter: CanonicalAdapter, shape: BackboneShape, rank: int
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
            _put(stacks[name], tensor)
    for layer in range(spec.num_layers):
        prefix = f"layers.{layer}."
        source_prefix = f"backbone.{prefix}"
        source = {
            k.removeprefix(source_prefix): v
            for k, v in adapter.tensors.items()
            if k.startswith(source_prefix)
        }
        target = {k.removeprefix(prefix): v for k, v in stacks.items() if k.startswith(prefix)}
        _fill_layer(target, source, spec, shape, rank)


def _fill_layer(
    target: Tensors, source: Tensors, spec: BackboneSpec, shape: BackboneShape, rank: int
) -> None:
    for name, tensor in source.items():
        kind = name.split(".")[0]
        if kind.endswith("norm"):
            _put(target[name], tensor)
    for part in ("weight", "bias"):
        if f"q.{part}" in source:
            _put(target[f"qkv.{part}"], _fuse_qkv(source, part, spec, shape, rank))
        if f"up.{part}" in source:
            _put(target[f"up.{part}"], _fuse_up(source, part, shape, rank))
    _put(
        target["o.weight"],
        _place_heads(source["o.weight"].t(), spec, shape, rank, is_query=True).t(),
    )
    _put(target["down.weight"], _columns(source["down.weight"].t(), shape, rank).t())
    for name in ("o.bias", "down.bias"):
        # The ranks' outputs are summed, so only one of them adds the bias.
        if name in source and rank == 0:
            _put(target[name], source[name])


def _fuse_qkv(
    source: Tensors, part: str, spec: BackboneSpec, shape: BackboneShape, rank: int
) -> torch.Tensor:
    rows = [
        _place_heads(source[f"{n}.{part}"], spec, shape, rank, is_query=n == "q") for n in "qkv"
    ]
    return torch.cat(rows)


def _place_heads(
    rows: torch.Tensor, spec: BackboneSpec, shape: BackboneShape, rank: int, *, is_query: bool
) -> torch.Tensor:
    """Spread (heads * head_dim, ...) rows over this rank's heads by whole KV groups; zeros where there is no head."""
    group = spec.num_heads // spec.num_kv_heads if is_query else 1
    wide_group = shape.num_heads // shape.num_kv_heads if is_query else 1
    rest = rows.shape[1:]
    grouped = rows.reshape(spec.num_kv_heads, group, spec.head_dim, *rest)
    first = rank * shape.num_kv_heads
    mine = grouped[first : first + shape.num_kv_heads]
    wide = rows.new_zeros(shape.num_kv_heads, wide_group, spec.head_dim, *rest)
    wide[: mine.shape[0], :group] = mine
    return wide.reshape(-1, *rest)


def _fuse_up(source: Tensors, part: str, shape: BackboneShape, rank: int) -> torch.Tensor:
    names = ("gate", "up") if shape.spec.mlp == "glu" else ("up",)
    return torch.cat([_columns(source[f"{n}.{part}"], shape, rank) for n in names])


def _columns(rows: torch.Tensor, shape: BackboneShape, rank: int) -> torch.Tensor:
    """Return this rank's MLP rows of (intermediate, ...), zero-padded to the class's per-rank size."""
    mine = rows[rank * shape.intermediate_size : (rank + 1) * shape.intermediate_size]
    wide = rows.new_zeros(shape.intermediate_size, *rows.shape[1:])
    wide[: mine.shape[0]] = mine
    return wide
