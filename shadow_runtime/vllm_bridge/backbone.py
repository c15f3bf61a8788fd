"""The shadow backbone: small causal transformers of many adapters, run as one batch.

Runs in: GPU worker.

Weights come from slot stacks, so each token is multiplied with its own adapter's matrices; attention is stateless but
for its KV cache and therefore shared by all slot classes. vLLM sees ordinary attention layers: it allocates their
cache, pages it and keys its prefix blocks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding import get_rope

import shadow_kernels
from shadow_runtime.config import CacheGeometry, ShadowConfig
from shadow_runtime.errors import ConfigError
from shadow_runtime.slots.layout import PRODUCTS, BackboneShape, backbone_shape
from shadow_runtime.types import BackboneSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import CacheConfig

    from shadow_runtime.slots.stack import AdapterStacks, TensorStacks

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(slots=True)
class SlotRows:
    """Which tokens of a step belong to one slot class.

    Attributes:
        index: (num_tokens,) int64 slot within the class, 0 for other tokens.
        mask: (num_tokens, 1) bool, True where the token is of this class.
    """

    index: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, adapter_slots: torch.Tensor, first_slot: int, num_slots: int) -> SlotRows:
        """Build the rows of one class from the step's (num_tokens,) int32 slots."""
        local = adapter_slots.long() - first_slot
        mask = (local >= 0) & (local < num_slots)
        return cls(torch.where(mask, local, 0), mask.unsqueeze(1))

    def gather(self, stack: torch.Tensor) -> torch.Tensor:
        """Return (num_tokens, width): each token's row of an (num_slots, width) stack, zeros for other tokens.

        Selected, not multiplied: whatever an unused slot holds, NaN included, cannot leak.
        """
        return torch.where(self.mask, stack[self.index], 0)


def _modules(items: Iterable[ModuleT]) -> Sequence[ModuleT]:
    """Return a ModuleList; typed by its items, which torch's own annotation forgets."""
    return cast("Sequence[ModuleT]", nn.ModuleList(items))


class SlotNorm(nn.Module):
    """Layer norm with each token's own weights; kinds as in `BackboneSpec.norm`."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, spec: BackboneSpec, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self._kind, self._eps = spec.norm, spec.norm_eps
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: torch.Tensor, rows: SlotRows) -> torch.Tensor:
        """Normalise the last dimension of (num_tokens, [heads,] width)."""
        weight = rows.gather(self.weight)
        if x.dim() == 3:
            weight = weight.unsqueeze(1)
        wide = x.float()
        if self._kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        if self._kind == "rms":
            return wide.to(x.dtype) * weight
        if self._kind == "gemma_rms":
            return (wide * (1.0 + weight.float())).to(x.dtype)
        wide = wide * weight.float()
        return (wide if self.bias is None else wide + rows.gather(self.bias).float()).to(x.dtype)


class SlotLinear(nn.Module):
    """Matrix product with each token's own weights; rows of other classes become zeros.

    Args:
        stacks: of the class.
        name: of weight and bias in them.
        first_slot: of the class.
        segments: of the step.
        extents: (num_slots, 2) int32 how much of a weight is not padding, None for all.
        num_chunks: parts of the rows that are padded each.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    extents: torch.Tensor | None

    def __init__(
        self,
        stacks: TensorStacks,
        name: str,
        first_slot: int,
        segments: shadow_kernels.StepSegments,
        extents: torch.Tensor | None = None,
        num_chunks: int = 1,
    ) -> None:
        super().__init__()
        self._first_slot = first_slot
        self._segments = [segments]
        self._num_chunks = num_chunks
        self.register_buffer("weight", stacks[f"{name}.weight"], persistent=False)
        self.register_buffer("bias", stacks.find(f"{name}.bias"), persistent=False)
        self.register_buffer("extents", extents, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (num_tokens, in) to (num_tokens, out)."""
        groups = self._segments[0].grouping
        return torch.ops.shadow.slot_linear(
            x, self.weight, self.bias, self.extents, self._num_chunks, *groups, self._first_slot
        )

    def compile_ahead(self) -> None:
        """Compile what steps of any size launch, so that none of them waits for the compiler."""
        segments = self._segments[0]
        shadow_kernels.compile_slot_linear(
            self.weight,
            self.bias,
            segments.grouping,
            self._first_slot,
            segments.max_tokens,
            extents=self.extents,
            num_chunks=self._num_chunks,
        )


class ClassLayer(nn.Module):
    """One transformer layer of one slot class, without its attention."""

    def __init__(
        self,
        shape: BackboneShape,
        stacks: TensorStacks,
        layer: int,
        first_slot: int,
        segments: shadow_kernels.StepSegments,
        attention_scale: float,
    ) -> None:
        super().__init__()
        spec = shape.spec
        self._shape = shape
        self._prefix = f"layers.{layer}."
        self._query_factor = spec.attention_scale / attention_scale
        self.input_norm = self._norm(stacks, "input_norm")
        self.mlp_norm = self._norm(stacks, "mlp_norm")
        self.attn_out_norm = self._norm(stacks, "attn_out_norm") if spec.sandwich_norm else None
        self.mlp_out_norm = self._norm(stacks, "mlp_out_norm") if spec.sandwich_norm else None
        self.q_norm = self._norm(stacks, "q_norm") if spec.qk_norm else None
        self.k_norm = self._norm(stacks, "k_norm") if spec.qk_norm else None
        extents = stacks[f"{self._prefix}extents"]
        num_chunks = {"up": 2 if spec.mlp == "glu" else 1}
        self.qkv, self.o, self.up, self.down = (
            SlotLinear(
                stacks,
                self._prefix + name,
                first_slot,
                segments,
                extents[:, index],
                num_chunks.get(name, 1),
            )
            for index, name in enumerate(PRODUCTS)
        )
        self.rotary = None if spec.rope is None else _rotary(spec, layer)

    def _norm(self, stacks: TensorStacks, name: str) -> SlotNorm:
        name = self._prefix + name
        return SlotNorm(self._shape.spec, stacks[f"{name}.weight"], stacks.find(f"{name}.bias"))

    def project(
        self, x: torch.Tensor, positions: torch.Tensor, rows: SlotRows
    ) -> tuple[torch.Tensor, ...]:
        """Return query (num_tokens, heads * E), key and value (num_tokens, kv_heads * E); zeros for other classes."""
        shape, size = self._shape, self._shape.spec.head_dim
        widths = [shape.num_heads * size, shape.num_kv_heads * size, shape.num_kv_heads * size]
        query, key, value = self.qkv(self.input_norm(x, rows)).split(widths, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query = self.q_norm(query.unflatten(-1, (shape.num_heads, size)), rows).flatten(-2)
            key = self.k_norm(key.unflatten(-1, (shape.num_kv_heads, size)), rows).flatten(-2)
        if self.rotary is not None:
            query, key = self.rotary(positions, query.contiguous(), key.contiguous())
        if self._query_factor != 1.0:
            query = query * self._query_factor
        return query, key, value

    def finish(self, x: torch.Tensor, attention: torch.Tensor, rows: SlotRows) -> torch.Tensor:
        """Add the attention's and the MLP's output to the residual stream (num_tokens, hidden)."""
        out = self._reduce(self.o(attention))
        x = x + (out if self.attn_out_norm is None else self.attn_out_norm(out, rows))
        out = self._reduce(self.down(self._activate(self.up(self.mlp_norm(x, rows)))))
        return x + (out if self.mlp_out_norm is None else self.mlp_out_norm(out, rows))

    def _reduce(self, partial: torch.Tensor) -> torch.Tensor:
        return tensor_model_parallel_all_reduce(partial) if self._shape.sharded else partial

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        spec = self._shape.spec
        if spec.mlp == "plain":
            return _activation(spec, x)
        gate, up = x.chunk(2, dim=-1)
        return _activation(spec, gate) * up


def _activation(spec: BackboneSpec, x: torch.Tensor) -> torch.Tensor:
    if spec.activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if spec.activation == "gelu_tanh" else "none")


def _rotary(spec: BackboneSpec, layer: int) -> nn.Module:
    if spec.rope is None:
        raise ValueError("this backbone has no rotary embedding")
    # The table is a formula, not a weight: it must reach as far as the base's sequences do.
    served = get_current_vllm_config().model_config.max_model_len
    return get_rope(
        spec.head_dim,
        max_position=max(spec.max_position_embeddings, served),
        rope_parameters=json.loads(spec.rope[layer]),
    )


def _check_positions(config: ShadowConfig, served: int) -> None:
    for slot_class in config.slot_classes:
        learned = slot_class.spec.learned_positions
        if 0 < learned < served:
            raise ConfigError(
                f"slot class {slot_class.name} knows {learned} positions, fewer than max_model_len "
                f"{served}; lower max_model_len"
            )


class ClassBackbone(nn.Module):
    """All layers of one slot class, its embeddings and its projection."""

    embed_table: torch.Tensor | None
    position_table: torch.Tensor | None

    def __init__(
        self,
        config: ShadowConfig,
        class_index: int,
        stacks: TensorStacks,
        segments: shadow_kernels.StepSegments,
        cache: CacheGeometry,
        attention_scale: float,
        tp_size: int,
    ) -> None:
        super().__init__()
        slot_class = config.slot_classes[class_index]
        self.spec = slot_class.spec
        self.first_slot = config.first_slot(class_index)
        self.num_slots = slot_class.num_slots
        shape = backbone_shape(slot_class, cache, tp_size)
        self.layers = _modules(
            ClassLayer(shape, stacks, i, self.first_slot, segments, attention_scale)
            for i in range(self.spec.num_layers)
        )
        self.norm = SlotNorm(self.spec, stacks["norm.weight"], stacks.find("norm.bias"))
        self.register_buffer("embed_table", stacks.find("embed.weight"), persistent=False)
        self.register_buffer(
            "position_table", stacks.find("position_embed.weight"), persistent=False
        )
        self.projection = (
            SlotLinear(stacks, "projection", self.first_slot, segments)
            if self.spec.has_projection
            else None
        )

    def embed(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        base_embeds: torch.Tensor,
        rows: SlotRows,
    ) -> torch.Tensor:
        """Return the backbone's input (num_tokens, hidden); zeros for tokens of other classes."""
        if self.embed_table is None:
            x = torch.where(rows.mask, base_embeds, 0)
        else:
            # Padding rows of a captured graph may hold any id.
            ids = input_ids.long().clamp(0, self.spec.vocab_size - 1)
            x = torch.where(rows.mask, self.embed_table[rows.index, ids], 0) * self.spec.embed_scale
        if self.position_table is not None:
            places = positions.long().clamp(0, self.spec.learned_positions - 1)
            x = x + torch.where(rows.mask, self.position_table[rows.index, places], 0)
        return x

    def finish(self, x: torch.Tensor, rows: SlotRows) -> torch.Tensor:
        """Return the initial shadow state (num_tokens, base hidden size); zeros for tokens of other classes."""
        x = self.norm(x, rows)
        x = x if self.projection is None else self.projection(x)
        return torch.where(rows.mask, x, 0)


# A class of its own with a forward of its own: vLLM's compile cache is keyed by the forward's qualified name and line,
# and an instance of the base's model class here would be handed the base's compiled graph.
@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "state": 0})
class ShadowBackbone(nn.Module):
    """Makes the initial shadow state of every token that has an adapter."""

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "shadow",
        config: ShadowConfig,
        stacks: AdapterStacks,
        segments: shadow_kernels.StepSegments,
        tp_size: int,
        embed: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        _check_positions(config, vllm_config.model_config.max_model_len)
        cache = CacheGeometry.of(config.slot_classes)
        scale = config.slot_classes[0].spec.attention_scale
        self._segments = [segments]
        # In a list: a bound method of the base model, whose modules are none of this one's.
        self._embed = [embed]
        self.classes = _modules(
            ClassBackbone(config, i, stacks.backbones[i], segments, cache, scale, tp_size)
            for i in range(len(config.slot_classes))
        )
        shape = backbone_shape(config.slot_classes[0], cache, tp_size)
        self.attention = _modules(
            _attention(vllm_config, cache, shape, scale, i, prefix) for i in range(cache.num_layers)
        )

    def compile_ahead(self) -> None:
        """Compile the products' kernels for steps of any size."""
        for module in self.modules():
            if isinstance(module, SlotLinear):
                module.compile_ahead()

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """Run the backbones.

        Args:
            input_ids: (num_tokens,) int32 or int64.
            positions: (num_tokens,) int64.
            state: (num_tokens, base hidden size); overwritten, with zeros for tokens without an adapter.

        Returns: state. Written in here, so that the compiler makes no copy of its own launch of it.
        """
        slots = self._segments[0].adapter_slots[: positions.shape[0]]
        classes = [c for c in self.classes if self._has_tokens(c)]
        rows = [SlotRows.of(slots, c.first_slot, c.num_slots) for c in classes]
        base_embeds = self._embed[0](input_ids)
        hidden = [
            c.embed(input_ids, positions, base_embeds, r)
            for c, r in zip(classes, rows, strict=True)
        ]
        for layer, attention in enumerate(self.attention):
            active = [i for i, c in enumerate(classes) if layer < c.spec.num_layers]
            if not active:
                break
            parts = [
                classes[i].layers[layer].project(hidden[i], positions, rows[i]) for i in active
            ]
            # Every token is of one class at most, so the sum picks its row.
            query, key, value = (
                sum(tensors[1:], tensors[0]) for tensors in zip(*parts, strict=True)
            )
            attended = attention(query, key, value)
            for i in active:
                hidden[i] = classes[i].layers[layer].finish(hidden[i], attended, rows[i])
        states = [c.finish(x, r) for c, x, r in zip(classes, hidden, rows, strict=True)]
        return state.copy_(sum(states[1:], states[0]))

    def _has_tokens(self, backbone: ClassBackbone) -> bool:
        """Whether the step has tokens of a class; always True where the graph must serve every step."""
        starts = self._segments[0].slot_starts
        if starts.is_cuda or torch.compiler.is_compiling():
            return True
        first, end = backbone.first_slot, backbone.first_slot + backbone.num_slots
        return bool(starts[first] < starts[end])


def _attention(
    vllm_config: VllmConfig,
    cache: CacheGeometry,
    shape: BackboneShape,
    scale: float,
    layer: int,
    prefix: str,
) -> Attention:
    return Attention(
        shape.num_heads,
        cache.head_dim,
        scale,
        num_kv_heads=shape.num_kv_heads,
        cache_config=_cache_config(vllm_config.cache_config, cache.windows[layer]),
        logits_soft_cap=cache.logit_softcap,
        per_layer_sliding_window=cache.windows[layer],
        # Exactly one integer: vLLM reads the layer index from the name.
        prefix=f"{prefix}.layers.{layer}.attn",
    )


def _cache_config(cache_config: CacheConfig, window: int | None) -> CacheConfig:
    """Return a cache config under which `window` means what it says: vLLM replaces None by the base's own window."""
    if window is not None or cache_config.sliding_window is None:
        return cache_config
    full = copy.copy(cache_config)
    full.sliding_window = None
    return full
