"""Where every tensor of an adapter goes inside a slot, and what a slot costs.

Runs in: API process (fit checks, byte counts) | GPU worker (slot images).

A slot is one index into stacks of shape (num_slots, ...). An adapter smaller than its class is padded with zeros,
which is exact: silu(0) = gelu(0) = 0 for widths, zero output projections make a missing layer the identity, and heads
are placed by whole KV groups. Boundary stacks hold the layers of this pipeline stage only; attention and MLP are split
over tensor-parallel ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from shadow_runtime.config import CacheGeometry, ShadowConfig, SlotClass
from shadow_runtime.errors import AdapterLimitError
from shadow_runtime.types import AdapterManifest, BackboneSpec


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """This worker's part of the model.

    Attributes:
        layers: base layers [start, end) of this pipeline stage.
        has_backbone: the stage computes the initial shadow state (the first one does).
        rank, size: tensor-parallel rank and world size.
    """

    layers: tuple[int, int]
    has_backbone: bool
    rank: int = 0
    size: int = 1

    @property
    def num_layers(self) -> int:
        """Base layers of this stage."""
        return self.layers[1] - self.layers[0]


@dataclass(frozen=True, slots=True)
class BackboneShape:
    """Per-rank sizes of one class's backbone stacks.

    Attributes:
        spec: the class's backbone.
        num_heads, num_kv_heads: heads of this rank, those of the shared cache geometry.
        intermediate_size: MLP columns of this rank.
        sharded: attention and MLP are split over ranks and their outputs summed.
    """

    spec: BackboneSpec
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    sharded: bool

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query, key and value matrix."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.spec.head_dim


def backbone_shape(slot_class: SlotClass, cache: CacheGeometry, size: int) -> BackboneShape:
    """Return the per-rank sizes of a class; replicated on every rank when the KV heads do not divide by `size`."""
    sharded = size > 1 and cache.num_kv_heads % size == 0
    parts = size if sharded else 1
    return BackboneShape(
        spec=slot_class.spec,
        num_heads=cache.num_heads // parts,
        num_kv_heads=cache.num_kv_heads // parts,
        intermediate_size=math.ceil(slot_class.spec.intermediate_size / parts),
        sharded=sharded,
    )


def boundary_stacks(
    config: ShadowConfig, hidden_size: int, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Return name to per-slot shape of the boundary stacks of `num_layers` base layers, in the model's dtype."""
    rank, gate = config.max_injection_rank, config.max_gate_size
    return {
        "down": (num_layers, rank, hidden_size),
        "up": (num_layers, rank, hidden_size),
        "update_in": (num_layers, 2, gate, hidden_size),
        "update_in_bias": (num_layers, 2, gate),
        "update_out": (num_layers, 2, gate, hidden_size),
        "update_out_bias": (num_layers, 2, hidden_size),
        "norm_weight": (hidden_size,),
        "norm_bias": (hidden_size,),
    }


def backbone_stacks(shape: BackboneShape, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Return name to per-slot shape of one class's backbone stacks, in the model's dtype."""
    spec = shape.spec
    stacks: dict[str, tuple[int, ...]] = {}
    for layer in range(spec.num_layers):
        for name, dims in _layer_stacks(shape).items():
            stacks[f"layers.{layer}.{name}"] = dims
    stacks |= _norm_stacks(spec, "norm")
    if spec.vocab_size:
        stacks["embed.weight"] = (spec.vocab_size, spec.hidden_size)
    if spec.learned_positions:
        stacks["position_embed.weight"] = (spec.learned_positions, spec.hidden_size)
    if spec.has_projection:
        stacks["projection.weight"] = (hidden_size, spec.hidden_size)
    return stacks


PRODUCTS = ("qkv", "o", "up", "down")
"""The linear layers of a backbone layer, in the order of their extents."""


def extent_stacks(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """Return name to per-slot shape of one class's int32 stacks: rows (of a chunk) and columns that an adapter has.

    One (4, 2) tensor a layer, see `PRODUCTS` and `shadow_kernels.slot_linear`.
    """
    return {f"layers.{layer}.extents": (len(PRODUCTS), 2) for layer in range(spec.num_layers)}


def _norm_stacks(spec: BackboneSpec, name: str) -> dict[str, tuple[int, ...]]:
    stacks: dict[str, tuple[int, ...]] = {f"{name}.weight": (spec.hidden_size,)}
    if spec.norm == "layer":
        stacks[f"{name}.bias"] = (spec.hidden_size,)
    return stacks


def _layer_stacks(shape: BackboneShape) -> dict[str, tuple[int, ...]]:
    spec, width = shape.spec, shape.spec.hidden_size
    up_rows = shape.intermediate_size * (2 if spec.mlp == "glu" else 1)
    stacks = _norm_stacks(spec, "input_norm") | _norm_stacks(spec, "mlp_norm")
    stacks["qkv.weight"] = (shape.qkv_rows, width)
    stacks["o.weight"] = (width, shape.num_heads * spec.head_dim)
    stacks["up.weight"] = (up_rows, width)
    stacks["down.weight"] = (width, shape.intermediate_size)
    if spec.qk_norm:
        stacks |= {"q_norm.weight": (spec.head_dim,), "k_norm.weight": (spec.head_dim,)}
    if spec.qkv_bias:
        stacks["qkv.bias"] = (shape.qkv_rows,)
    if spec.o_bias:
        stacks["o.bias"] = (width,)
    if spec.mlp_bias:
        stacks |= {"up.bias": (up_rows,), "down.bias": (width,)}
    if spec.sandwich_norm:
        stacks |= {"attn_out_norm.weight": (width,), "mlp_out_norm.weight": (width,)}
    return stacks


def slot_bytes(
    config: ShadowConfig, class_index: int, hidden_size: int, plan: ShardPlan, element_bytes: int
) -> int:
    """Return the device bytes that one slot of a class takes on one worker: stacks, flags, extents and scale."""
    dims = list(boundary_stacks(config, hidden_size, plan.num_layers).values())
    integers: list[tuple[int, ...]] = [(plan.num_layers,), (1,)]
    if plan.has_backbone:
        cache = CacheGeometry.of(config.slot_classes)
        shape = backbone_shape(config.slot_classes[class_index], cache, plan.size)
        dims += backbone_stacks(shape, hidden_size).values()
        integers += extent_stacks(shape.spec).values()
    num_elements, num_integers = (sum(math.prod(d) for d in kind) for kind in (dims, integers))
    return element_bytes * num_elements + 4 * num_integers


_MUST_EQUAL = (
    "hidden_size",
    "head_dim",
    "norm",
    "norm_eps",
    "qk_norm",
    "mlp",
    "activation",
    "sandwich_norm",
    "attention_scale",
    "logit_softcap",
    "embed_scale",
    "has_projection",
    # Rows that an adapter lacks would be zeros, not an error, for the tokens of a long sequence.
    "learned_positions",
)


def find_misfit(spec: BackboneSpec, target: BackboneSpec) -> str | None:
    """Return why a backbone does not pad exactly to `target`, or None when it does."""
    for name in _MUST_EQUAL:
        if getattr(spec, name) != getattr(target, name):
            return (
                f"its {name} is {getattr(spec, name)}, the slot class has {getattr(target, name)}"
            )
    for name in ("num_layers", "intermediate_size", "num_kv_heads"):
        if getattr(spec, name) > getattr(target, name):
            return (
                f"its {name} is {getattr(spec, name)}, the slot class holds {getattr(target, name)}"
            )
    if spec.num_heads // spec.num_kv_heads > target.num_heads // target.num_kv_heads:
        return (
            f"it has {spec.num_heads} heads over {spec.num_kv_heads} KV heads, "
            f"the slot class {target.num_heads} over {target.num_kv_heads}"
        )
    return _find_structure_misfit(spec, target)


def _find_structure_misfit(spec: BackboneSpec, target: BackboneSpec) -> str | None:
    for name in ("qkv_bias", "o_bias", "mlp_bias"):
        if getattr(spec, name) and not getattr(target, name):
            return f"it has a {name} and the slot class none"
    if bool(spec.vocab_size) != bool(target.vocab_size) or spec.vocab_size > target.vocab_size:
        return f"its own embedding has {spec.vocab_size} rows, the slot class holds {target.vocab_size}"
    if (spec.rope is None) != (target.rope is None):
        return "its position encoding is of another kind than the slot class's"
    layers = range(spec.num_layers)
    if (
        spec.rope is not None
        and target.rope is not None
        and any(spec.rope[i] != target.rope[i] for i in layers)
    ):
        return "its rotary parameters differ from the slot class's"
    if any(spec.windows[i] != target.windows[i] for i in layers):
        return "its sliding windows differ from the slot class's"
    return None


def choose_class(config: ShadowConfig, manifest: AdapterManifest) -> int:
    """Return the index of the first slot class that holds an adapter.

    Raises:
        AdapterLimitError: rank or gate over the server's maximum, or the backbone fits no class (each class's
            reason is named).
    """
    if manifest.injection_rank > config.max_injection_rank:
        raise AdapterLimitError(
            f"injection rank {manifest.injection_rank} is over this server's maximum of {config.max_injection_rank}"
        )
    if manifest.gate_size > config.max_gate_size:
        raise AdapterLimitError(
            f"gate size {manifest.gate_size} is over this server's maximum of {config.max_gate_size}"
        )
    reasons = []
    for index, slot_class in enumerate(config.slot_classes):
        misfit = find_misfit(manifest.backbone, slot_class.spec)
        if misfit is None:
            return index
        reasons.append(f"{slot_class.name}: {misfit}")
    raise AdapterLimitError(
        "the shadow backbone fits no slot class of this server (" + "; ".join(reasons) + ")"
    )


def widen(first: BackboneSpec, second: BackboneSpec) -> BackboneSpec | None:
    """Return the smallest spec that both pad to, or None when no such spec exists."""
    deeper = first if first.num_layers >= second.num_layers else second
    kv_heads = max(first.num_kv_heads, second.num_kv_heads)
    group = max(s.num_heads // s.num_kv_heads for s in (first, second))
    widest = replace(
        deeper,
        num_kv_heads=kv_heads,
        num_heads=kv_heads * group,
        intermediate_size=max(first.intermediate_size, second.intermediate_size),
        vocab_size=max(first.vocab_size, second.vocab_size),
        qkv_bias=first.qkv_bias or second.qkv_bias,
        o_bias=first.o_bias or second.o_bias,
        mlp_bias=first.mlp_bias or second.mlp_bias,
    )
    fits = find_misfit(first, widest) is None and find_misfit(second, widest) is None
    return widest if fits else None
