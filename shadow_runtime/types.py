"""Value types shared by every part of ShadowServe.

Runs in: API process | engine core | GPU worker. Imports neither torch nor vllm.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
    max_tensors: int = 8192


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """An adapter's name: a tenant's own short name. `str()` gives the full one, `tenant/name`.

    Attributes:
        tenant: owner, 1 to 63 of `a-z0-9-`, the first a letter or digit.
        name: 1 to 128 of `A-Za-z0-9._-`, the first a letter or digit.
    """

    tenant: str
    name: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"

    @property
    def display(self) -> str:
        """The name that answers, logs and metrics show: the short one for the default tenant, else the full one."""
        return self.name if self.tenant == DEFAULT_TENANT else str(self)


DEFAULT_TENANT = "default"
"""Owner of every adapter of a server without tenants."""


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

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AdapterManifest:
        """Rebuild a manifest from `to_dict` output, also after a trip through JSON."""
        fields = dict(data)
        fields["backbone"] = BackboneSpec.from_dict(fields["backbone"])
        for name in ("injects", "updates", "notes"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of a checkpoint, as a validation report shows it.

    Attributes:
        name: key in the file.
        dtype: safetensors spelling, `BF16` say.
        shape: sizes.
        num_bytes: bytes in the file.
        is_finite: no NaN and no Inf; None when it was not read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    is_finite: bool | None


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Everything that is known about a checkpoint after a validation that changed nothing.

    Attributes:
        manifest: what the adapter is; None when it is not valid.
        error_code, error_message: why it is not, both None when it is.
        tensors: of the weight file, as far as its header could be read.
        slot_class: name of the slot class that it would live in, None when it fits none.
        slot_bytes: device memory that it takes in its slot class.
        base_fingerprint: of the base model that it was checked against (`sha256:<hex>`).
        seconds: how long the validation took.
    """

    manifest: AdapterManifest | None
    error_code: str | None
    error_message: str | None
    tensors: tuple[TensorReport, ...]
    slot_class: str | None
    slot_bytes: int | None
    base_fingerprint: str
    seconds: float

    @property
    def is_valid(self) -> bool:
        """Whether the adapter can be served."""
        return self.manifest is not None and self.error_code is None


@dataclass(frozen=True, slots=True)
class RequestTag:
    """What travels with a generation request through the engine, beside its body.

    Attributes:
        tag: unique to the request; the engine reports its token usage under it.
        tenant: who asks.
        weight: the tenant's share of contended slots, over 0.
        cache_salt: keeps the tenant's cached prefixes apart from others'; None on a server without tenants.
    """

    tag: str
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    cache_salt: str | None = None


class RequestOrigin(NamedTuple):
    """What a sequence in the engine is counted under.

    Attributes:
        adapter: the name that the request was started with, None for the bare base model.
        tenant: who asks.
    """

    adapter: str | None
    tenant: str


@dataclass(frozen=True, slots=True)
class SequenceState:
    """One sequence that the engine works on now.

    Attributes:
        origin: what it is counted under.
        is_waiting: it has no token yet: it waits for its turn, or its prompt is being computed.
        age_seconds: since its prompt arrived.
    """

    origin: RequestOrigin
    is_waiting: bool
    age_seconds: float
