"""Value types shared by every part of ShadowServe.

Runs in: API process | engine core | GPU worker. Imports neither torch nor vllm.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

NO_ADAPTER = -1
"""Slot index of a token that belongs to no adapter."""

AdapterFormat = Literal["paper", "peft"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
NormKind = Literal["rms", "gemma_rms", "layer"]
MlpKind = Literal["glu", "plain"]


@dataclass(frozen=True, slots=True)
class BaseGeometry:
    """What an adapter must fit: the frozen base model's shape.

    Attributes:
        family: model family, one of `shadow_runtime.artifact.backbone_spec.FAMILIES`.
        hidden_size: width of the residual stream (D).
        num_layers: decoder layers (L).
        vocab_size: rows of the input embedding.
        hf_config: the base's Hugging Face config as a plain dict (`PretrainedConfig.to_dict()`); implicit and
            mirror backbones copy it and change a few fields, exactly as the reference packages do.
    """

    family: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    hf_config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Geometry of one shadow backbone: a small causal transformer that makes the initial shadow state.

    Everything that changes the arithmetic is here and nothing else, so two specs that are equal share kernels.

    Attributes:
        family: model family whose layer layout the backbone has.
        num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim: sizes, read from tensors.
        norm: kind of the layer norms; `gemma_rms` multiplies by (1 + weight).
        norm_eps: epsilon of the layer norms and, where present, of the query and key norms.
        qk_norm: query and key are normalised per head (same kind as `norm`) before the rotary embedding.
        qkv_bias, o_bias, mlp_bias: linears that carry biases.
        mlp: `glu` is down(act(gate(x)) * up(x)); `plain` is down(act(up(x))).
        activation: the MLP's activation.
        sandwich_norm: norms after attention and after the MLP too (Gemma 2 and 3).
        rope: one JSON text per layer with the rotary parameters (sorted keys), or None for a backbone without.
        windows: one sliding window per layer, None for full attention.
        attention_scale: factor on query-key products.
        logit_softcap: tanh cap on attention logits, None without.
        max_position_embeddings: context that the rotary or learned positions cover.
        learned_positions: rows of the learned position table (GPT-2), 0 without.
        vocab_size: rows of the backbone's own embedding, 0 when it is fed the base's embeddings.
        embed_scale: factor on its own embeddings (Gemma), 1.0 otherwise.
        has_projection: a (D, hidden_size) matrix maps the backbone's output to the base width.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: NormKind
    norm_eps: float
    qk_norm: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    mlp: MlpKind
    activation: Activation
    sandwich_norm: bool
    rope: tuple[str, ...] | None
    windows: tuple[int | None, ...]
    attention_scale: float
    logit_softcap: float | None
    max_position_embeddings: int
    learned_positions: int
    vocab_size: int
    embed_scale: float
    has_projection: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BackboneSpec:
        """Rebuild a spec from `to_dict` output (lists become tuples)."""
        fields = dict(data)
        fields["rope"] = None if fields["rope"] is None else tuple(fields["rope"])
        fields["windows"] = tuple(fields["windows"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Upper bounds that a server puts on what an adapter may ask for; checked before anything is allocated.

    Attributes:
        max_injection_rank, max_gate_size: widths of the boundary's bottlenecks.
        max_shadow_layers, max_intermediate_size, max_heads: backbone sizes.
        max_file_bytes: size of one safetensors file.
        max_header_bytes, max_tensors: safetensors header caps.
    """

    max_injection_rank: int = 64
    max_gate_size: int = 64
    max_shadow_layers: int = 64
    max_intermediate_size: int = 65536
    max_heads: int = 256
    max_file_bytes: int = 4 << 30
    max_header_bytes: int = 1 << 20
    max_tensors: int = 4096


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What is known about a validated adapter without its tensors.

    Attributes:
        digest: `sha256:<64 hex digits>` over canonical tensors and config; the adapter's identity.
        format: checkpoint format it was read from.
        path: absolute directory it was read from.
        backbone_config: absolute path of the explicit backbone's config given at registration, or None.
        injection_rank, gate_size: R and G of the boundary.
        scale: alpha, the factor on the injected correction.
        activation: of gate and transform, `silu` (paper) or `gelu` (peft, exact erf form).
        has_norm: one LayerNorm (eps 1e-5) precedes gate and transform (paper), or none (peft).
        has_update_bias: gate and transform carry biases (peft).
        injects: for each base layer l, whether a correction is injected before it.
        updates: for each base layer l, whether the state is updated just before it, from the output of layer l - 1
            (index 0 is always False; updates after the last layer are dead and dropped).
        backbone: the shadow backbone's geometry.
        num_parameters: elements over all canonical tensors.
        tensor_bytes: bytes of the canonical tensors as stored.
        notes: one sentence for each thing that was ignored on purpose (a `shadow_lm_head`, say).
    """

    digest: str
    format: AdapterFormat
    path: str
    backbone_config: str | None
    injection_rank: int
    gate_size: int
    scale: float
    activation: Activation
    has_norm: bool
    has_update_bias: bool
    injects: tuple[bool, ...]
    updates: tuple[bool, ...]
    backbone: BackboneSpec
    num_parameters: int
    tensor_bytes: int
    notes: tuple[str, ...] = ()
