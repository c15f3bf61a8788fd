"""An adapter padded to its slot, ready to be copied into the stacks in one pass.

Runs in: GPU worker, loader thread.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass, replace

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
    extent_stacks,
)
from shadow_runtime.types import AdapterManifest, BackboneSpec

Tensors = dict[str, torch.Tensor]

_ALIGNMENT = 256
"""Of every tensor in an image's memory, in bytes."""


@dataclass(frozen=True, slots=True)
class SlotImage:
    """One worker's padded copy of an adapter in host memory.

    Attributes:
        manifest: of the adapter.
        class_index: slot class that holds it.
        scale: alpha.
        flags: (num_layers of this stage,) int32 bits of `shadow_runtime.slots.layout`.
        boundary, backbone: stack name to tensor of the per-slot shape, model dtype but for the backbone's int32
            extents; `backbone` is empty on stages without one.
        memory: uint8, one-dimensional; all tensors lie in it.
    """

    manifest: AdapterManifest
    class_index: int
    scale: float
    flags: torch.Tensor
    boundary: Tensors
    backbone: Tensors
    memory: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors of stacks."""
        return sum(t.nbytes for t in (*self.boundary.values(), *self.backbone.values()))

    def at(self, memory: torch.Tensor) -> SlotImage:
        """Return an image whose tensors have the same places in another memory, which holds a copy of this one's.

        Args:
            memory: uint8, one-dimensional, at least as large.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            start = tensor.data_ptr() - self.memory.data_ptr()
            return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

        return replace(
            self,
            flags=moved(self.flags),
            boundary={name: moved(tensor) for name, tensor in self.boundary.items()},
            backbone={name: moved(tensor) for name, tensor in self.backbone.items()},
            memory=memory[: self.memory.nbytes],
        )


def build_image(
    adapter: CanonicalAdapter,
    config: ShadowConfig,
    plan: ShardPlan,
    *,
    hidden_size: int,
    dtype: torch.dtype,
) -> SlotImage:
    """Pad an adapter to the first slot class that holds it; see `ImageDraft`.

    Raises:
        AdapterLimitError: it fits no slot class.
    """
    draft = ImageDraft(adapter.manifest, config, plan, hidden_size=hidden_size, dtype=dtype)
    return draft.finish(adapter)


def max_image_bytes(
    config: ShadowConfig, plan: ShardPlan, hidden_size: int, dtype: torch.dtype
) -> int:
    """Return the bytes of an image of the largest slot class."""
    classes = range(len(config.slot_classes))
    return max(_Layout.of(config, i, plan, hidden_size, dtype).num_bytes for i in classes)


class ImageDraft:
    """The memory of an image that is about to be filled.

    Tensors that need no padding can be read right where they belong: `place` says where, and `finish` copies the rest.

    Args:
        manifest: of the adapter.
        config: the server's slot classes.
        plan: this worker's part of the model.
        hidden_size: width of the base (D).
        dtype: the model's dtype; stored tensors are rounded to it.

    Raises:
        AdapterLimitError: the adapter fits no slot class.
    """

    def __init__(
        self,
        manifest: AdapterManifest,
        config: ShadowConfig,
        plan: ShardPlan,
        *,
        hidden_size: int,
        dtype: torch.dtype,
    ) -> None:
        self._manifest = manifest
        self._plan = plan
        self._class_index = choose_class(config, manifest)
        layout = _Layout.of(config, self._class_index, plan, hidden_size, dtype)
        self._shape = layout.shape
        self._memory = _allocate(layout.num_bytes)
        tensors = layout.tensors(self._memory)
        self._flags = tensors.pop("flags")
        self._boundary = _Canvas({name: tensors.pop(name) for name in layout.boundary})
        self._backbone = _Canvas(tensors)

    def place(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Return where a canonical tensor goes as it is, None when it has to be padded, cut or rounded.

        Args:
            name: of the canonical tensor.
            shape: its shape.
            dtype: as stored.
        """
        part, _, local = name.partition(".")
        if part == "boundary":
            return self._boundary.find(local, shape, dtype)
        if self._shape.sharded or not self._plan.has_backbone:
            return None
        rows = _fused_rows(local, self._shape, self._manifest.backbone)
        if rows is None:
            return self._backbone.find(local, shape, dtype)
        stack, first, total = rows
        whole = self._backbone.find(stack, (total, *shape[1:]), dtype)
        return None if whole is None else whole[first : first + shape[0]]

    def finish(self, adapter: CanonicalAdapter) -> SlotImage:
        """Return the image of an adapter with the draft's manifest."""
        _fill_boundary(self._boundary, adapter, self._plan)
        if self._plan.has_backbone:
            rank = self._plan.rank if self._shape.sharded else 0
            _fill_backbone(self._backbone, adapter, self._shape, rank)
        self._flags.copy_(_flags(self._manifest, self._plan))
        return SlotImage(
            manifest=adapter.manifest,
            class_index=self._class_index,
            scale=self._manifest.scale,
            flags=self._flags,
            boundary=self._boundary.tensors,
            backbone=self._backbone.tensors,
            memory=self._memory,
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where every tensor of an image lies in its memory.

    Attributes:
        shape: of the class's backbone on this worker.
        boundary: names of the boundary stacks; they differ from the backbone's.
        places: name to first byte, dtype and shape.
        num_bytes: of the memory.
    """

    shape: BackboneShape
    boundary: frozenset[str]
    places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]
    num_bytes: int

    @classmethod
    def of(
        cls,
        config: ShadowConfig,
        class_index: int,
        plan: ShardPlan,
        hidden_size: int,
        dtype: torch.dtype,
    ) -> _Layout:
        """Return the layout of one slot class."""
        cache = CacheGeometry.of(config.slot_classes)
        shape = backbone_shape(config.slot_classes[class_index], cache, plan.size)
        boundary = boundary_stacks(config, hidden_size, plan.num_layers)
        backbone = backbone_stacks(shape, hidden_size) if plan.has_backbone else {}
        stacks: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        stacks = {"flags": (torch.int32, (plan.num_layers,))}
        stacks |= {name: (dtype, dims) for name, dims in (boundary | backbone).items()}
        if plan.has_backbone:
            stacks |= {
                name: (torch.int32, dims) for name, dims in extent_stacks(shape.spec).items()
            }
        places, end = {}, 0
        for name, (kind, dims) in stacks.items():
            places[name] = (end, kind, dims)
            num_bytes = kind.itemsize * math.prod(dims)
            end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return cls(shape, frozenset(boundary), places, end)

    def tensors(self, memory: torch.Tensor) -> Tensors:
        """Return every tensor as a view of `memory`."""
        return {
            name: memory[start : start + dtype.itemsize * math.prod(dims)].view(dtype).view(dims)
            for name, (start, dtype, dims) in self.places.items()
        }


def _allocate(num_bytes: int) -> torch.Tensor:
    """Return (num_bytes,) uint8 zeros that nobody has touched: padding costs nothing.

    They come in large pages where the system has them, since small ones take longer than the reading, and go back to it
    with the tensor.
    """
    memory = mmap.mmap(-1, num_bytes)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _fused_rows(name: str, shape: BackboneShape, spec: BackboneSpec) -> tuple[str, int, int] | None:
    """Return in which fused stack a backbone tensor is, its first row and the rows of all parts; None for others."""
    prefix, _, local = name.rpartition(".")
    layer, _, linear = prefix.rpartition(".")
    q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    inner = spec.intermediate_size
    if linear in ("q", "k", "v"):
        first = {"q": 0, "k": q_rows, "v": q_rows + kv_rows}[linear]
        return f"{layer}.qkv.{local}", first, q_rows + 2 * kv_rows
    if linear in ("gate", "up") and spec.mlp == "glu":
        return f"{layer}.up.{local}", 0 if linear == "gate" else inner, 2 * inner
    return None


class _Canvas:
    """Named tensors, zero at first, that adapters of the same or smaller sizes are put into.

    Attributes:
        tensors: by name.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def find(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Return a tensor that has exactly this shape and dtype."""
        tensor = self.tensors.get(name)
        fits = tensor is not None and (tensor.shape, tensor.dtype) == (shape, dtype)
        return tensor if fits else None

    def put(self, name: str, *parts: torch.Tensor) -> None:
        """Copy parts, one below the other, into the leading corner of a tensor, rounding to its dtype."""
        row = 0
        for part in parts:
            corner = (slice(row, row + part.shape[0]), *(slice(0, n) for n in part.shape[1:]))
            target = self.tensors[name][corner]
            if not _is_same(target, part):
                target.copy_(part)
            row += part.shape[0]


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors of one shape are the same elements of the same memory."""
    return (
        first.data_ptr() == second.data_ptr()
        and first.dtype == second.dtype
        and first.stride() == second.stride()
    )


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
        place = _Placement(spec, shape, rank)
        _fill_layer(canvas, prefix, source, place)
        canvas.put(f"{prefix}extents", place.extents())


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where an adapter's heads and MLP columns go on one rank."""

    spec: BackboneSpec
    shape: BackboneShape
    rank: int

    def extents(self) -> torch.Tensor:
        """Return (4, 2) int32 rows and columns of a layer's products; the MLP's padding is not among them."""
        shape, width = self.shape, self.shape.spec.hidden_size
        size = shape.intermediate_size
        inner = max(0, min(size, self.spec.intermediate_size - self.rank * size))
        return torch.tensor(
            [
                [shape.qkv_rows, width],
                [width, shape.num_heads * shape.spec.head_dim],
                [inner, width],
                [width, inner],
            ],
            dtype=torch.int32,
        )

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
