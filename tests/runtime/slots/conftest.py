"""Factories of backbone specs and random canonical adapters, small enough to compute in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from shadow_runtime.artifact import CanonicalAdapter
from shadow_runtime.config import ShadowConfig, SlotClass
from shadow_runtime.slots.image import build_image
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.types import AdapterManifest, BackboneSpec

HIDDEN_SIZE = 16
NUM_LAYERS = 5
WHOLE = ShardPlan((0, NUM_LAYERS), has_backbone=True)
ROPE = '{"rope_theta":10000.0,"rope_type":"default"}'

PLAIN = BackboneSpec(
    family="llama",
    num_layers=2,
    hidden_size=HIDDEN_SIZE,
    intermediate_size=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    norm="rms",
    norm_eps=1e-6,
    qk_norm=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    mlp="glu",
    activation="silu",
    sandwich_norm=False,
    rope=(ROPE, ROPE),
    windows=(None, None),
    attention_scale=0.5,
    logit_softcap=None,
    max_position_embeddings=64,
    learned_positions=0,
    vocab_size=0,
    embed_scale=1.0,
    has_projection=False,
)


def _resize(spec: BackboneSpec, changes: dict[str, Any]) -> BackboneSpec:
    """Replace fields; a new depth repeats the first layer's rotary parameters and window."""
    depth = changes.get("num_layers", spec.num_layers)
    if depth != spec.num_layers:
        rope = None if spec.rope is None else (spec.rope[0],) * depth
        changes = {"rope": rope, "windows": (spec.windows[0],) * depth} | changes
    return replace(spec, **changes)


def _manifest(backbone: BackboneSpec, **changes: Any) -> AdapterManifest:
    fields: dict[str, Any] = {
        "digest": "sha256:" + "0" * 64,
        "format": "paper",
        "path": "/adapters/one",
        "backbone_config": None,
        "injection_rank": 3,
        "gate_size": 5,
        "scale": 0.75,
        "activation": "silu",
        "has_norm": True,
        "has_update_bias": False,
        "injects": (False, True, True, True, True),
        "updates": (False, False, True, True, True),
        "backbone": backbone,
        "num_parameters": 0,
        "tensor_bytes": 0,
    }
    return AdapterManifest(**(fields | changes))


def _norm_shapes(spec: BackboneSpec, name: str) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return {f"{name}.{part}": (spec.hidden_size,) for part in parts}


def _linear_shapes(
    name: str, rows: int, columns: int, has_bias: bool
) -> dict[str, tuple[int, ...]]:
    bias = {f"{name}.bias": (rows,)} if has_bias else {}
    return {f"{name}.weight": (rows, columns)} | bias


def _layer_shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    width, inner, size = spec.hidden_size, spec.intermediate_size, spec.head_dim
    shapes = _norm_shapes(spec, "input_norm") | _norm_shapes(spec, "mlp_norm")
    for name, heads in (("q", spec.num_heads), ("k", spec.num_kv_heads), ("v", spec.num_kv_heads)):
        shapes |= _linear_shapes(name, heads * size, width, spec.qkv_bias)
    shapes |= _linear_shapes("o", width, spec.num_heads * size, spec.o_bias)
    for name in ("gate", "up") if spec.mlp == "glu" else ("up",):
        shapes |= _linear_shapes(name, inner, width, spec.mlp_bias)
    shapes |= _linear_shapes("down", width, inner, spec.mlp_bias)
    if spec.qk_norm:
        shapes |= {"q_norm.weight": (size,), "k_norm.weight": (size,)}
    if spec.sandwich_norm:
        shapes |= _norm_shapes(spec, "attn_out_norm") | _norm_shapes(spec, "mlp_out_norm")
    return shapes


def _backbone_shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    shapes = _norm_shapes(spec, "norm")
    for layer in range(spec.num_layers):
        shapes |= {f"layers.{layer}.{name}": dims for name, dims in _layer_shapes(spec).items()}
    if spec.vocab_size:
        shapes["embed.weight"] = (spec.vocab_size, spec.hidden_size)
    if spec.learned_positions:
        shapes["position_embed.weight"] = (spec.learned_positions, spec.hidden_size)
    if spec.has_projection:
        shapes["projection.weight"] = (HIDDEN_SIZE, spec.hidden_size)
    return shapes


def _boundary_shapes(manifest: AdapterManifest) -> dict[str, tuple[int, ...]]:
    depth, rank, gate = len(manifest.injects), manifest.injection_rank, manifest.gate_size
    shapes: dict[str, tuple[int, ...]] = {
        "down": (depth, rank, HIDDEN_SIZE),
        "up": (depth, rank, HIDDEN_SIZE),
        "update_in": (depth, 2, gate, HIDDEN_SIZE),
        "update_out": (depth, 2, gate, HIDDEN_SIZE),
    }
    if manifest.has_update_bias:
        shapes |= {"update_in_bias": (depth, 2, gate), "update_out_bias": (depth, 2, HIDDEN_SIZE)}
    if manifest.has_norm:
        shapes |= {"norm_weight": (HIDDEN_SIZE,), "norm_bias": (HIDDEN_SIZE,)}
    return shapes


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., BackboneSpec]:
    """Return `make_spec(**changes)`: a two-layer backbone of 4 heads over 2 KV heads, with fields replaced."""
    return lambda **changes: _resize(PLAIN, changes)


@pytest.fixture(scope="session")
def resize() -> Callable[..., BackboneSpec]:
    """Return `resize(spec, **changes)`: another depth keeps rotary parameters and windows in step."""
    return lambda spec, **changes: _resize(spec, changes)


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., AdapterManifest]:
    """Return `make_manifest(backbone, **changes)`: an adapter of a base with five layers."""
    return _manifest


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., CanonicalAdapter]:
    """Return `make_adapter(backbone, seed=0, dtype=torch.float32, **changes)` with zero-mean random tensors."""

    def make(
        backbone: BackboneSpec, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> CanonicalAdapter:
        manifest = _manifest(backbone, **changes)
        generator = torch.Generator().manual_seed(seed)
        shapes = {f"boundary.{k}": v for k, v in _boundary_shapes(manifest).items()}
        shapes |= {f"backbone.{k}": v for k, v in _backbone_shapes(backbone).items()}
        tensors = {
            # Unit variance over the input width, so that no part of the network fades.
            name: (torch.randn(dims, generator=generator) * dims[-1] ** -0.5).to(dtype)
            for name, dims in shapes.items()
        }
        return CanonicalAdapter(manifest, tensors)

    return make


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ShadowConfig]:
    """Return `make_config(*specs, num_slots=3, **changes)`: one slot class per spec, rank 4 and gate 6."""

    def make(*specs: BackboneSpec, num_slots: int = 3, **changes: Any) -> ShadowConfig:
        classes = tuple(SlotClass(f"class{i}", s, num_slots) for i, s in enumerate(specs))
        return ShadowConfig(classes, **({"max_injection_rank": 4, "max_gate_size": 6} | changes))

    return make


@pytest.fixture(scope="session")
def write_slot() -> Callable[..., AdapterStacks]:
    """Return `write_slot(adapter, config, plan=whole model, slot=1, dtype=torch.float64)`.

    It returns stacks of which every other slot holds NaN, and flags that no adapter has.
    """

    def write(
        adapter: CanonicalAdapter,
        config: ShadowConfig,
        plan: ShardPlan = WHOLE,
        *,
        slot: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> AdapterStacks:
        stacks = AdapterStacks(config, plan, HIDDEN_SIZE, dtype)
        for buffer in stacks.buffers():
            buffer.fill_(math.nan if buffer.is_floating_point() else 0x55)
        stacks.write(slot, build_image(adapter, config, plan, hidden_size=HIDDEN_SIZE, dtype=dtype))
        return stacks

    return write


@pytest.fixture
def dirty_memory() -> Iterator[None]:
    """Fill memory that was asked for without a value with NaN; fresh memory would be zeros by luck."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
