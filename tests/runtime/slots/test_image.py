"""Padding is exact: the stacks compute in fp64 what the adapter's own tensors compute.

Two oracles meet here. `canonical_state` reads the unpadded canonical tensors with separate q, k and v; `stack_state`
reads a slot of the padded, fused, sharded stacks and sums the ranks. Both are plain fp64 loops over heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shadow_runtime.artifact import CanonicalAdapter
from shadow_runtime.config import CacheGeometry, ShadowConfig
from shadow_runtime.slots.image import ImageDraft, build_image
from shadow_runtime.slots.layout import PRODUCTS, BackboneShape, ShardPlan, backbone_shape
from shadow_runtime.slots.stack import AdapterStacks, TensorStacks
from shadow_runtime.types import BackboneSpec

pytestmark = pytest.mark.usefixtures("dirty_memory")

HIDDEN_SIZE = 16
NUM_LAYERS = 5
NUM_TOKENS = 7
SLOT = 1
EXACT = 1e-12
WHOLE = ShardPlan((0, NUM_LAYERS), has_backbone=True)

_ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

# Name: fields of the adapter's backbone, fields of the class that is padded to.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama, same size": ({}, {}),
    "deeper": ({}, {"num_layers": 4}),
    "wider MLP": ({}, {"intermediate_size": 17}),
    "GQA 4/2 into 8/4": ({}, {"num_heads": 8, "num_kv_heads": 4}),
    "GQA 4/2 into 6/2": ({}, {"num_heads": 6}),
    "MQA 2/1 into 12/4": (
        {"num_heads": 2, "num_kv_heads": 1},
        {"num_heads": 12, "num_kv_heads": 4},
    ),
    "qwen3": ({"qk_norm": True}, {"num_layers": 3, "num_heads": 12, "num_kv_heads": 4}),
    "qwen2": ({"qkv_bias": True}, {"num_heads": 12, "num_kv_heads": 4}),
    "into a class with biases": (
        {},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "num_layers": 3},
    ),
    "all biases": (
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"num_layers": 3, "intermediate_size": 17, "num_heads": 12, "num_kv_heads": 4},
    ),
    "gemma": (
        {
            "norm": "gemma_rms",
            "sandwich_norm": True,
            "qk_norm": True,
            "activation": "gelu_tanh",
            "windows": (3, None),
            "attention_scale": 0.3,
        },
        {"num_layers": 3, "windows": (3, None, 3), "intermediate_size": 17, "num_kv_heads": 4,
         "num_heads": 8},
    ),
    "gpt2 with own embeddings": (
        {
            "norm": "layer",
            "mlp": "plain",
            "activation": "gelu",
            "rope": None,
            "qkv_bias": True,
            "o_bias": True,
            "mlp_bias": True,
            "learned_positions": 9,
            "vocab_size": 11,
        },
        {"num_layers": 3, "intermediate_size": 17, "vocab_size": 13, "num_heads": 8,
         "num_kv_heads": 4},
    ),
    "projected": (
        {"hidden_size": 8, "has_projection": True, "vocab_size": 11, "embed_scale": 3.0},
        {"num_layers": 3, "vocab_size": 13, "intermediate_size": 17},
    ),
}  # fmt: skip


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Turn (num_tokens, heads, head_dim) by each token's position."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x)).double()[:, None, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: BackboneSpec, window: int | None
) -> torch.Tensor:
    """Causal attention of (num_tokens, heads, head_dim) queries; query head i reads KV head i // group."""
    if spec.rope is not None:
        q, k = rotate(q), rotate(k)
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    distance = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
    hidden = (distance < 0) | (distance >= (window or len(q)))
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T * spec.attention_scale
        scores = scores.masked_fill(hidden, -math.inf)
        out[:, head] = scores.softmax(-1) @ v[:, head // group]
    return out


def normed(
    spec: BackboneSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Norm of the last dimension in fp64."""
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + spec.norm_eps)
    x = x * (1 + weight if spec.norm == "gemma_rms" else weight)
    return x if bias is None else x + bias


class Inputs:
    """Token ids and the base's embeddings of one sequence, zero-mean fp64."""

    def __init__(self, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 11, (NUM_TOKENS,), generator=generator)
        self.embeds = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator, dtype=torch.float64)

    def embed(self, spec: BackboneSpec, get: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Return the backbone's input from tensors by name."""
        x = get("embed.weight")[self.ids] * spec.embed_scale if spec.vocab_size else self.embeds
        return x + get("position_embed.weight")[:NUM_TOKENS] if spec.learned_positions else x


class CanonicalBackbone:
    """The backbone of unpadded canonical tensors."""

    def __init__(self, adapter: CanonicalAdapter) -> None:
        self.spec = adapter.manifest.backbone
        self.tensors = {
            name.removeprefix("backbone."): tensor.double()
            for name, tensor in adapter.tensors.items()
        }

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return normed(
            self.spec, x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        )

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def layer(self, index: int, x: torch.Tensor) -> torch.Tensor:
        spec, prefix = self.spec, f"layers.{index}."
        q, k, v = (
            self.linear(prefix + n, self.norm(prefix + "input_norm", x)).unflatten(
                -1, (-1, spec.head_dim)
            )
            for n in "qkv"
        )
        if spec.qk_norm:
            q, k = self.norm(prefix + "q_norm", q), self.norm(prefix + "k_norm", k)
        out = self.linear(prefix + "o", attend(q, k, v, spec, spec.windows[index]).flatten(1))
        x = x + (self.norm(prefix + "attn_out_norm", out) if spec.sandwich_norm else out)
        inner = self.norm(prefix + "mlp_norm", x)
        act, up = _ACTIVATIONS[spec.activation], self.linear(prefix + "up", inner)
        out = act(self.linear(prefix + "gate", inner)) * up if spec.mlp == "glu" else act(up)
        out = self.linear(prefix + "down", out)
        return x + (self.norm(prefix + "mlp_out_norm", out) if spec.sandwich_norm else out)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        x = inputs.embed(self.spec, self.tensors.__getitem__)
        for index in range(self.spec.num_layers):
            x = self.layer(index, x)
        x = self.norm("norm", x)
        return self.linear("projection", x) if self.spec.has_projection else x


def within(weight: torch.Tensor, extent: torch.Tensor, num_chunks: int) -> torch.Tensor:
    """Return a product's weight with zeros where no operator looks."""
    num_rows, num_columns = extent.tolist()
    chunks = weight.clone().view(num_chunks, -1, weight.shape[1])
    chunks[:, num_rows:], chunks[..., num_columns:] = 0.0, 0.0
    return chunks.view(weight.shape)


class StackBackbone:
    """The backbone that one slot of every rank's stacks describes: fused, padded, partial sums added."""

    def __init__(self, shape: BackboneShape, ranks: list[TensorStacks], slot: int) -> None:
        self.spec, self.shape, self.slot = shape.spec, shape, slot
        self.ranks = ranks if shape.sharded else ranks[:1]

    def get(self, name: str, rank: int = 0) -> torch.Tensor:
        return self.ranks[rank][name][self.slot]

    def find(self, name: str, rank: int = 0) -> torch.Tensor | None:
        stack = self.ranks[rank].find(name)
        return None if stack is None else stack[self.slot]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return normed(self.spec, x, self.get(f"{name}.weight"), self.find(f"{name}.bias"))

    def linear(self, name: str, x: torch.Tensor, rank: int) -> torch.Tensor:
        weight, bias = self.get(f"{name}.weight", rank), self.find(f"{name}.bias", rank)
        layer, _, product = name.rpartition(".")
        if product in PRODUCTS:
            extent = self.get(f"{layer}.extents", rank)[PRODUCTS.index(product)]
            weight = within(weight, extent, 2 if (product, self.spec.mlp) == ("up", "glu") else 1)
        return F.linear(x, weight, bias)

    def attention(self, index: int, x: torch.Tensor, rank: int) -> torch.Tensor:
        spec, shape, prefix = self.spec, self.shape, f"layers.{index}."
        rows = self.linear(prefix + "qkv", x, rank).unflatten(-1, (-1, spec.head_dim))
        q, k, v = rows.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        if spec.qk_norm:
            q, k = self.norm(prefix + "q_norm", q), self.norm(prefix + "k_norm", k)
        out = attend(q, k, v, spec, spec.windows[index]).flatten(1)
        return self.linear(prefix + "o", out, rank)

    def mlp(self, index: int, x: torch.Tensor, rank: int) -> torch.Tensor:
        prefix, act = f"layers.{index}.", _ACTIVATIONS[self.spec.activation]
        rows = self.linear(prefix + "up", x, rank)
        if self.spec.mlp == "glu":
            gate, up = rows.chunk(2, dim=-1)
            return self.linear(prefix + "down", act(gate) * up, rank)
        return self.linear(prefix + "down", act(rows), rank)

    def layer(self, index: int, x: torch.Tensor) -> torch.Tensor:
        prefix, ranks = f"layers.{index}.", range(len(self.ranks))
        inner = self.norm(prefix + "input_norm", x)
        out = sum(self.attention(index, inner, rank) for rank in ranks)
        x = x + (self.norm(prefix + "attn_out_norm", out) if self.spec.sandwich_norm else out)
        inner = self.norm(prefix + "mlp_norm", x)
        out = sum(self.mlp(index, inner, rank) for rank in ranks)
        return x + (self.norm(prefix + "mlp_out_norm", out) if self.spec.sandwich_norm else out)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        x = inputs.embed(self.spec, self.get)
        for index in range(self.spec.num_layers):
            x = self.layer(index, x)
        x = self.norm("norm", x)
        return self.linear("projection", x, 0) if self.spec.has_projection else x


@pytest.fixture(params=VARIANTS)
def case(
    request: pytest.FixtureRequest,
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    resize: Callable[..., BackboneSpec],
) -> tuple[CanonicalAdapter, BackboneSpec]:
    """Return an adapter of each variant and the spec of the class that it is padded to."""
    own, changes = VARIANTS[request.param]
    spec = make_spec(**own)
    return make_adapter(spec, seed=7), resize(spec, **changes)


def with_more_heads(spec: BackboneSpec, config: Callable[..., ShadowConfig]) -> ShadowConfig:
    """Return classes whose shared cache has more KV heads and larger groups than class 0 itself."""
    return config(spec, replace(spec, num_kv_heads=8, num_heads=32, hidden_size=24))


@pytest.mark.parametrize("shares_cache", [False, True], ids=["alone", "wider cache"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_rank_together_computes_the_adapters_backbone(
    case: tuple[CanonicalAdapter, BackboneSpec],
    size: int,
    shares_cache: bool,
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    adapter, target = case
    config = with_more_heads(target, make_config) if shares_cache else make_config(target)
    plans = [ShardPlan((0, NUM_LAYERS), True, rank, size) for rank in range(size)]
    ranks = [write_slot(adapter, config, plan).backbones[0] for plan in plans]
    shape = backbone_shape(config.slot_classes[0], CacheGeometry.of(config.slot_classes), size)
    inputs = Inputs()
    expected = CanonicalBackbone(adapter)(inputs)
    got = StackBackbone(shape, ranks, SLOT)(inputs)
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() < EXACT
    # Not vacuous: the state is far from its own input and from zero.
    assert (expected - inputs.embeds).square().mean().sqrt() > 0.1
    assert expected.square().mean(1).sqrt().min() > 0.1


@pytest.mark.parametrize("served", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2])
def test_reading_in_place_makes_the_same_image(
    case: tuple[CanonicalAdapter, BackboneSpec],
    size: int,
    served: torch.dtype,
    make_config: Callable[..., ShadowConfig],
) -> None:
    adapter, target = case
    config, plan = make_config(target), ShardPlan((0, NUM_LAYERS), True, size - 1, size)
    sizes = {"hidden_size": HIDDEN_SIZE, "dtype": served}
    draft, num_placed = ImageDraft(adapter.manifest, config, plan, **sizes), 0
    tensors = {}
    for name, tensor in adapter.tensors.items():
        place = draft.place(name, tuple(tensor.shape), tensor.dtype)
        num_placed += place is not None
        tensors[name] = tensor if place is None else place.copy_(tensor)
        assert place is None or place.is_contiguous()
    image = draft.finish(replace(adapter, tensors=tensors))
    expected = build_image(adapter, config, plan, **sizes)
    assert torch.equal(image.memory, expected.memory)
    assert image.backbone["norm.weight"].any()
    if served == torch.bfloat16:
        assert num_placed == 0, "stored as fp32, so everything has to be rounded"
    elif target == adapter.manifest.backbone and size == 1:
        boundary = {name for name in tensors if name.startswith("boundary") and "norm" not in name}
        # The config's rank and gate are wider than this adapter's.
        assert num_placed == len(tensors) - len(boundary)


def test_the_comparison_sees_every_tensor_of_the_slot(
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    own, _ = VARIANTS["all biases"]
    adapter, config = make_adapter(make_spec(**own), seed=7), make_config(make_spec(**own))
    stacks = write_slot(adapter, config).backbones[0]
    shape = backbone_shape(config.slot_classes[0], CacheGeometry.of(config.slot_classes), 1)
    inputs = Inputs()
    expected = CanonicalBackbone(adapter)(inputs)
    unseen = []
    for attribute, stack in stacks.named_buffers():
        if not stack.is_floating_point():
            continue
        row = stack[SLOT].reshape(-1)
        before = float(row[-1])
        row[-1] = before + 1e-3
        if (StackBackbone(shape, [stacks], SLOT)(inputs) - expected).abs().max() < 1e3 * EXACT:
            unseen.append(attribute)
        row[-1] = before
    assert unseen == []
    assert len(list(stacks.named_buffers())) == 2 * 11 + 1


@pytest.mark.parametrize(
    ("size", "rank", "inner"), [(1, 0, 10), (2, 0, 9), (2, 1, 1), (4, 1, 5), (4, 2, 0), (4, 3, 0)]
)
def test_extents_leave_out_the_padding_and_no_more(
    size: int,
    rank: int,
    inner: int,
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    """An MLP of 10 columns in a class of 17, two layers in a class of three."""
    own = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 10, "num_layers": 2}
    adapter = make_adapter(make_spec(**own), seed=3)
    config = make_config(make_spec(**own | {"intermediate_size": 17, "num_layers": 3}))
    plan = ShardPlan((0, NUM_LAYERS), True, rank, size)
    stacks = write_slot(adapter, config, plan).backbones[0]
    rows, heads = (8 + 2 * 4) * 4 // size, 8 * 4 // size
    expected = [[rows, 16], [16, heads], [inner, 16], [16, inner]]
    for layer in range(2):
        assert stacks[f"layers.{layer}.extents"][SLOT].tolist() == expected
        for index, name in enumerate(PRODUCTS):
            weight = stacks[f"layers.{layer}.{name}.weight"][SLOT]
            cut = within(weight, torch.tensor(expected[index]), 2 if name == "up" else 1)
            assert torch.equal(weight, cut)
    assert not stacks["layers.2.extents"][SLOT].any()


def test_heads_are_placed_by_whole_kv_groups(
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    # 4 query heads over 2 KV heads into 12 over 4: heads 0 1 | 2 3 go to 0 1 . | 3 4 . | . . . | . . .
    adapter = make_adapter(make_spec(num_layers=1), seed=1)
    config = make_config(make_spec(num_layers=1, num_heads=12, num_kv_heads=4))
    stacks = write_slot(adapter, config).backbones[0]
    q, k, v = stacks["layers.0.qkv.weight"][SLOT].unflatten(0, (20, 4)).split([12, 4, 4])
    own = {n: adapter.tensors[f"backbone.layers.0.{n}.weight"].double() for n in "qkvo"}
    for place, head in {0: 0, 1: 1, 3: 2, 4: 3}.items():
        assert torch.equal(q[place], own["q"].unflatten(0, (4, 4))[head])
        column = stacks["layers.0.o.weight"][SLOT].unflatten(1, (12, 4))[:, place]
        assert torch.equal(column, own["o"].unflatten(1, (4, 4))[:, head])
    for place in (2, 5, 6, 7, 8, 9, 10, 11):
        assert not q[place].any()
        assert not stacks["layers.0.o.weight"][SLOT].unflatten(1, (12, 4))[:, place].any()
    for rows, name in ((k, "k"), (v, "v")):
        assert torch.equal(rows[:2], own[name].unflatten(0, (2, 4)))
        assert not rows[2:].any()


@pytest.mark.parametrize("size", [2, 4])
def test_one_rank_only_adds_the_output_biases(
    size: int,
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    spec = make_spec(qkv_bias=True, o_bias=True, mlp_bias=True, num_heads=8, num_kv_heads=4)
    adapter, config = make_adapter(spec), make_config(spec)
    for rank in range(size):
        stacks = write_slot(adapter, config, ShardPlan((0, 5), True, rank, size)).backbones[0]
        for name in ("layers.1.o.bias", "layers.1.down.bias"):
            expected = adapter.tensors[f"backbone.{name}"].double()
            assert torch.equal(stacks[name][SLOT], expected if rank == 0 else 0 * expected)
        assert stacks["layers.1.qkv.bias"][SLOT].any()


def test_ranks_are_replicated_where_kv_heads_do_not_divide(
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    adapter, config = make_adapter(make_spec(o_bias=True)), make_config(make_spec(o_bias=True))
    whole = write_slot(adapter, config).backbones[0]
    for rank in range(3):
        copy = write_slot(adapter, config, ShardPlan((0, 5), True, rank, 3)).backbones[0]
        for (name, got), (_, expected) in zip(
            copy.named_buffers(), whole.named_buffers(), strict=True
        ):
            assert torch.equal(got[SLOT], expected[SLOT]), name
