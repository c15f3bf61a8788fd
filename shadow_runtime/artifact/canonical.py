"""The one in-memory form of every adapter, whatever package wrote it.

Runs in: API process | GPU worker. CPU tensors only.

Canonical tensor names and shapes (D base hidden size, L base layers, R injection rank, G gate size, S backbone hidden
size, H and K query and key-value heads, E head size, I backbone MLP width, V vocabulary, P learned positions):

    boundary.down             (L, R, D)      row r of layer l projects the discrepancy h - s before base layer l
    boundary.up               (L, R, D)      zeros where a layer is not injected
    boundary.update_in        (L, 2, G, D)   [transform, gate]; index l acts between base layers l - 1 and l
    boundary.update_in_bias   (L, 2, G)      only when manifest.has_update_bias
    boundary.update_out       (L, 2, G, D)
    boundary.update_out_bias  (L, 2, D)      only when manifest.has_update_bias
    boundary.norm_weight      (D,)           only when manifest.has_norm
    boundary.norm_bias        (D,)           only when manifest.has_norm
    backbone.layers.{i}.input_norm.weight    (S,)         [.bias for layer norms]
    backbone.layers.{i}.{q,k,v}.weight       (H|K|K * E, S)  [.bias when spec.qkv_bias]
    backbone.layers.{i}.{q_norm,k_norm}.weight (E,)       when spec.qk_norm
    backbone.layers.{i}.o.weight             (S, H * E)   [.bias when spec.o_bias]
    backbone.layers.{i}.attn_out_norm.weight (S,)         when spec.sandwich_norm
    backbone.layers.{i}.mlp_norm.weight      (S,)         [.bias for layer norms]; the norm in front of the MLP
    backbone.layers.{i}.gate.weight          (I, S)       glu only
    backbone.layers.{i}.up.weight            (I, S)       [.bias when spec.mlp_bias]
    backbone.layers.{i}.down.weight          (S, I)       [.bias when spec.mlp_bias]
    backbone.layers.{i}.mlp_out_norm.weight  (S,)         when spec.sandwich_norm
    backbone.norm.weight                     (S,)         [.bias for layer norms]
    backbone.embed.weight                    (V, S)       when spec.vocab_size > 0
    backbone.position_embed.weight           (P, S)       when spec.learned_positions > 0
    backbone.projection.weight               (D, S)       when spec.has_projection

The update between layers l - 1 and l, then the injection before layer l, form one boundary:

    x = layer_norm(h) or h
    s = s + sigmoid(gate(x)) * (transform(x) - s)      transform, gate = out(act(in(x) + in_bias)) + out_bias
    h = h + scale * ((h - s) @ down.T) @ up
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shadow_runtime.types import AdapterManifest, BackboneSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class CanonicalAdapter:
    """A validated adapter: its manifest and its canonical CPU tensors (finite, contiguous, dtype as stored).

    Attributes:
        manifest: see `AdapterManifest`.
        tensors: canonical name to tensor, exactly the names that this module's docstring lists for the manifest.
    """

    manifest: AdapterManifest
    tensors: dict[str, torch.Tensor]


Shapes = dict[str, tuple[int, ...]]


def canonical_shapes(manifest: AdapterManifest, hidden_size: int) -> Shapes:
    """Return name to shape of every canonical tensor of an adapter.

    Args:
        manifest: of the adapter.
        hidden_size: of the base (D).
    """
    shapes = _boundary_shapes(manifest, hidden_size)
    spec = manifest.backbone
    backbone = _norm_shapes(spec, "norm")
    for index in range(spec.num_layers):
        layer = _layer_shapes(spec)
        backbone |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    if spec.vocab_size:
        backbone["embed.weight"] = (spec.vocab_size, spec.hidden_size)
    if spec.learned_positions:
        backbone["position_embed.weight"] = (spec.learned_positions, spec.hidden_size)
    if spec.has_projection:
        backbone["projection.weight"] = (hidden_size, spec.hidden_size)
    return shapes | {f"backbone.{name}": shape for name, shape in backbone.items()}


def _boundary_shapes(manifest: AdapterManifest, width: int) -> Shapes:
    layers, rank, gate = len(manifest.injects), manifest.injection_rank, manifest.gate_size
    shapes: Shapes = {
        "boundary.down": (layers, rank, width),
        "boundary.up": (layers, rank, width),
        "boundary.update_in": (layers, 2, gate, width),
        "boundary.update_out": (layers, 2, gate, width),
    }
    if manifest.has_update_bias:
        shapes["boundary.update_in_bias"] = (layers, 2, gate)
        shapes["boundary.update_out_bias"] = (layers, 2, width)
    if manifest.has_norm:
        shapes["boundary.norm_weight"] = shapes["boundary.norm_bias"] = (width,)
    return shapes


def _layer_shapes(spec: BackboneSpec) -> Shapes:
    width, inner = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes = _norm_shapes(spec, "input_norm") | _norm_shapes(spec, "mlp_norm")
    shapes |= _linear_shapes("q", q_size, width, spec.qkv_bias)
    for name in "kv":
        shapes |= _linear_shapes(name, kv_size, width, spec.qkv_bias)
    shapes |= _linear_shapes("o", width, q_size, spec.o_bias)
    for name in ("gate", "up") if spec.mlp == "glu" else ("up",):
        shapes |= _linear_shapes(name, inner, width, spec.mlp_bias)
    shapes |= _linear_shapes("down", width, inner, spec.mlp_bias)
    if spec.qk_norm:
        shapes["q_norm.weight"] = shapes["k_norm.weight"] = (spec.head_dim,)
    if spec.sandwich_norm:
        shapes["attn_out_norm.weight"] = shapes["mlp_out_norm.weight"] = (width,)
    return shapes


def _norm_shapes(spec: BackboneSpec, name: str) -> Shapes:
    parts = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return {f"{name}.{part}": (spec.hidden_size,) for part in parts}


def _linear_shapes(name: str, out_size: int, in_size: int, has_bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out_size, in_size)}
    return shapes | ({f"{name}.bias": (out_size,)} if has_bias else {})
