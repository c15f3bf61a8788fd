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

from shadow_runtime.types import AdapterManifest

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
