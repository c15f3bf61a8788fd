"""Logits of a base with a canonical adapter, computed straight from the manifest and the canonical tensors.

An independent oracle: plain fp32 torch, one sequence, no cache, none of the reference packages' modules.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from reference_adapters import load_base
from shadow_runtime.artifact import CanonicalAdapter
from shadow_runtime.types import BackboneSpec

_ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class _Backbone:
    def __init__(self, spec: BackboneSpec, tensors: dict[str, torch.Tensor]) -> None:
        self.spec = spec
        self.tensors = tensors

    def __call__(self, base_embeds: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        spec, tensors = self.spec, self.tensors
        x = base_embeds
        if spec.vocab_size:
            x = tensors["backbone.embed.weight"][token_ids] * spec.embed_scale
        if spec.learned_positions:
            x = x + tensors["backbone.position_embed.weight"][: len(token_ids)]
        for layer in range(spec.num_layers):
            x = self._layer(layer, x)
        x = self._norm("backbone.norm", x)
        return x @ tensors["backbone.projection.weight"].T if spec.has_projection else x

    def _layer(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        prefix = f"backbone.layers.{layer}."
        out = self._attention(layer, self._norm(prefix + "input_norm", x))
        if self.spec.sandwich_norm:
            out = self._norm(prefix + "attn_out_norm", out)
        x = x + out
        out = self._mlp(prefix, self._norm(prefix + "mlp_norm", x))
        if self.spec.sandwich_norm:
            out = self._norm(prefix + "mlp_out_norm", out)
        return x + out

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, eps = self.tensors[f"{name}.weight"], self.spec.norm_eps
        if self.spec.norm == "layer":
            return F.layer_norm(x, weight.shape, weight, self.tensors[f"{name}.bias"], eps)
        gain = 1 + weight if self.spec.norm == "gemma_rms" else weight
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _mlp(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        activate = _ACTIVATIONS[self.spec.activation]
        up = self._linear(prefix + "up", x)
        is_glu = self.spec.mlp == "glu"
        inner = activate(self._linear(prefix + "gate", x)) * up if is_glu else activate(up)
        return self._linear(prefix + "down", inner)

    def _attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        spec, prefix, num_tokens = self.spec, f"backbone.layers.{layer}.", len(x)
        q, k, v = (
            self._linear(prefix + name, x).view(num_tokens, heads, spec.head_dim).transpose(0, 1)
            for name, heads in (
                ("q", spec.num_heads),
                ("k", spec.num_kv_heads),
                ("v", spec.num_kv_heads),
            )
        )
        if spec.qk_norm:
            q, k = self._norm(prefix + "q_norm", q), self._norm(prefix + "k_norm", k)
        if spec.rope is not None:
            q, k = (_rotate(part, json.loads(spec.rope[layer])) for part in (q, k))
        groups = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scores = q @ k.transpose(1, 2) * spec.attention_scale
        if spec.logit_softcap is not None:
            scores = torch.tanh(scores / spec.logit_softcap) * spec.logit_softcap
        scores = scores.masked_fill(~_mask(num_tokens, spec.windows[layer]), -math.inf)
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(num_tokens, -1)
        return self._linear(prefix + "o", out)


def _mask(num_tokens: int, window: int | None) -> torch.Tensor:
    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)[None, :]
    return (distance >= 0) & (distance < (window or num_tokens))


def _rotate(x: torch.Tensor, rope: dict[str, object]) -> torch.Tensor:
    half = x.shape[-1] // 2
    frequency = float(rope["rope_theta"]) ** (-torch.arange(half) / half)
    if rope["rope_type"] == "linear":
        frequency = frequency / float(rope["factor"])
    angle = torch.arange(x.shape[1])[:, None] * frequency
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [
            first * angle.cos() - second * angle.sin(),
            second * angle.cos() + first * angle.sin(),
        ],
        -1,
    )


class _Boundary:
    """Base layer hooks that carry the shadow state."""

    def __init__(self, adapter: CanonicalAdapter, state: torch.Tensor) -> None:
        self.manifest = adapter.manifest
        self.tensors = {name: tensor.float() for name, tensor in adapter.tensors.items()}
        self.state = state

    def __call__(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Apply boundary `layer` to the hidden states in front of it, (num_tokens, D)."""
        if self.manifest.updates[layer]:
            transform, gate = self._branch(layer, hidden, 0), self._branch(layer, hidden, 1)
            self.state = self.state + torch.sigmoid(gate) * (transform - self.state)
        if not self.manifest.injects[layer]:
            return hidden
        down, up = self.tensors["boundary.down"][layer], self.tensors["boundary.up"][layer]
        return hidden + self.manifest.scale * (hidden - self.state) @ down.T @ up

    def _branch(self, layer: int, hidden: torch.Tensor, part: int) -> torch.Tensor:
        x, get = hidden, self.tensors.get
        if self.manifest.has_norm:
            weight = self.tensors["boundary.norm_weight"]
            x = F.layer_norm(x, weight.shape, weight, self.tensors["boundary.norm_bias"], 1e-5)
        x = x @ self.tensors["boundary.update_in"][layer, part].T
        if self.manifest.has_update_bias:
            x = x + get("boundary.update_in_bias")[layer, part]
        out = _ACTIVATIONS[self.manifest.activation](x)
        out = out @ self.tensors["boundary.update_out"][layer, part]
        return (
            out + get("boundary.update_out_bias")[layer, part]
            if self.manifest.has_update_bias
            else out
        )


def _decoder_layers(base: nn.Module) -> nn.ModuleList:
    return base.transformer.h if hasattr(base, "transformer") else base.model.layers


@torch.no_grad()
def canonical_logits(
    base_dir: Path, adapter: CanonicalAdapter, token_ids: list[int]
) -> torch.Tensor:
    """Return logits, (num_tokens, vocab_size) fp32, of the base at `base_dir` under `adapter`."""
    base = load_base(base_dir)
    ids = torch.tensor(token_ids)
    tensors = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    backbone = _Backbone(adapter.manifest.backbone, tensors)
    boundary = _Boundary(adapter, backbone(base.get_input_embeddings()(ids), ids))
    for index, layer in enumerate(_decoder_layers(base)):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: (
                (boundary(index, args[0][0])[None], *args[1:]),
                kwargs,
            ),
            with_kwargs=True,
        )
    return base(input_ids=ids[None], use_cache=False).logits[0].float()
