"""The supported model families and the geometry of a backbone of one of them.

Runs in: API process | engine core | GPU worker. Imports no model code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadow_runtime.artifact.field import ConfigFields
from shadow_runtime.errors import AdapterConfigError, UnsupportedStackError
from shadow_runtime.quote import quote
from shadow_runtime.types import Activation, BackboneSpec, BaseGeometry, MlpKind, NormKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture differs from the others.

    Attributes:
        name: Hugging Face `model_type`, the key in `FAMILIES`.
        layer_stack: dotted path of the decoder layers inside the causal language model.
        has_layer_types: each layer has full or sliding attention by the config's `layer_types`.
        has_head_dim: the config has a `head_dim` of its own, which outlives a change of width or heads.
        qkv_bias, o_bias: linears with biases; None where the config's `attention_bias` decides.
        norm, mlp, qk_norm, sandwich_norm: see `BackboneSpec`.
        scales_embeddings: embeddings are multiplied by the square root of the width.
    """

    name: str
    layer_stack: str = "model.layers"
    has_layer_types: bool = False
    has_head_dim: bool = True
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    norm: NormKind = "rms"
    mlp: MlpKind = "glu"
    qk_norm: bool = False
    sandwich_norm: bool = False
    scales_embeddings: bool = False


_GEMMA: dict[str, Any] = {
    "has_layer_types": True,
    "norm": "gemma_rms",
    "sandwich_norm": True,
    "scales_embeddings": True,
}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("qwen3", has_layer_types=True, qk_norm=True),
        Family("qwen2", has_layer_types=True, has_head_dim=False, qkv_bias=True, o_bias=False),
        Family("llama"),
        Family("mistral", qkv_bias=False, o_bias=False),
        Family("gemma2", **_GEMMA),
        Family("gemma3_text", qk_norm=True, **_GEMMA),
        Family(
            "gpt2",
            layer_stack="transformer.h",
            has_head_dim=False,
            qkv_bias=True,
            o_bias=True,
            norm="layer",
            mlp="plain",
        ),
    )
}
"""Supported families, keyed by Hugging Face `model_type`."""

# GPT-2 spells the sizes its own way.
_GPT2_FIELDS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# The others change with the length of the sequence, which cached keys cannot follow.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_MAX_ROPE_FIELDS = 16
_MAX_POSITIONS = 1 << 24

# Fields that change the maths in a way that is not supported when they are set.
_REFUSED_FIELDS = (
    "add_cross_attention",
    "scale_attn_by_inverse_layer_idx",
    "use_bidirectional_attention",
)


def field_name(family: Family, name: str) -> str:
    """Return how `family` spells the config field that others call `name`."""
    if family.name == "gpt2":
        return _GPT2_FIELDS.get(name, name)
    return "hidden_activation" if name == "hidden_act" and family.scales_embeddings else name


def base_geometry(hf_config: PretrainedConfig | Mapping[str, Any]) -> BaseGeometry:
    """Return the shape of the base model that a Hugging Face config describes.

    Args:
        hf_config: config of the causal language model, or its `to_dict()`.

    Raises:
        UnsupportedStackError: another family, or a variant of a family that is not supported.
    """
    values = _plain_dict(hf_config)
    family = get_family(values, "base model")
    fields = ConfigFields(values, "config.json of the base")
    try:
        refuse_variants(fields)
        return BaseGeometry(
            family=family.name,
            hidden_size=fields.get_size(field_name(family, "hidden_size")),
            num_layers=fields.get_size(field_name(family, "num_hidden_layers")),
            vocab_size=fields.get_size("vocab_size"),
            hf_config=values,
        )
    except AdapterConfigError as error:
        raise UnsupportedStackError(str(error)) from None


def get_family(values: Mapping[str, Any], owner: str) -> Family:
    """Return the family that a config names.

    Raises:
        UnsupportedStackError: it is none of `FAMILIES`; the message lists them.
    """
    model_type = values.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedStackError(
            f"the {owner} is of type {quote(model_type)}; supported are {', '.join(FAMILIES)}"
        )
    return family


def normalize_config(model_type: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults and modernise old rope fields with a family's own config class.

    Raises:
        AdapterConfigError: the class refuses the fields.
    """
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.for_model(model_type, **fields).to_dict()
    except Exception as error:  # the classes raise whatever their validation raises
        raise AdapterConfigError(
            f"the fields are not a valid {model_type} config ({type(error).__name__})"
        ) from None
    return config


def _plain_dict(hf_config: PretrainedConfig | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(hf_config, Mapping):
        return dict(hf_config.to_dict())
    fields = dict(hf_config)
    family = get_family(fields, "base model")
    del fields["model_type"]
    try:
        return normalize_config(family.name, fields)
    except AdapterConfigError as error:
        raise UnsupportedStackError(str(error)) from None


def refuse_variants(fields: ConfigFields) -> None:
    """Raise `AdapterConfigError` where a config asks for a variant of its family that is not supported."""
    for key in _REFUSED_FIELDS:
        if fields.values.get(key):
            raise AdapterConfigError(
                f"{quote(fields.name)} sets {quote(key)}, which is not supported"
            )


def spec_from_config(
    config: Mapping[str, Any], *, vocab_size: int, has_projection: bool, name: str
) -> BackboneSpec:
    """Return the geometry that a normalised config describes; nothing is read from tensors yet.

    Args:
        config: fields as `PretrainedConfig.to_dict()` gives them, of a supported `model_type`.
        vocab_size: rows of the backbone's own embedding, 0 when it is fed the base's.
        has_projection: a matrix maps its output to the base's width.
        name: where the config comes from, for messages.

    Raises:
        AdapterConfigError: a field is missing, mistyped, or asks for something that is not supported.
    """
    family = FAMILIES[config["model_type"]]
    fields = ConfigFields(config, name)
    refuse_variants(fields)
    hidden_size = fields.get_size(field_name(family, "hidden_size"))
    num_layers = fields.get_size(field_name(family, "num_hidden_layers"))
    num_heads, num_kv_heads, head_dim = _heads(family, fields, hidden_size)
    attention_bias = fields.get_flag("attention_bias", False)
    positions = fields.get_size(field_name(family, "max_position_embeddings"))
    if positions > _MAX_POSITIONS:
        raise AdapterConfigError(f"{quote(name)} covers {positions} positions, over the limit")
    layer_types = _layer_types(family, fields, num_layers)
    is_gpt2 = family.name == "gpt2"
    return BackboneSpec(
        family=family.name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(family, fields, hidden_size),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm=family.norm,
        norm_eps=_norm_eps(family, fields),
        qk_norm=family.qk_norm,
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=is_gpt2 or (family.name == "llama" and fields.get_flag("mlp_bias", False)),
        mlp=family.mlp,
        activation=_activation(family, fields),
        sandwich_norm=family.sandwich_norm,
        rope=None if is_gpt2 else _rope(fields, layer_types),
        windows=_windows(family, fields, layer_types),
        attention_scale=_attention_scale(family, fields, head_dim),
        logit_softcap=_logit_softcap(family, fields),
        max_position_embeddings=positions,
        learned_positions=positions if is_gpt2 else 0,
        vocab_size=vocab_size,
        embed_scale=math.sqrt(hidden_size) if vocab_size and family.scales_embeddings else 1.0,
        has_projection=has_projection,
    )


def _heads(family: Family, fields: ConfigFields, hidden_size: int) -> tuple[int, int, int]:
    num_heads = fields.get_size(field_name(family, "num_attention_heads"))
    num_kv_heads = num_heads
    if family.name != "gpt2":
        num_kv_heads = fields.get_size("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise AdapterConfigError(
            f"{quote(fields.name)} has {num_heads} heads over {num_kv_heads} key-value heads, which do"
            " not divide"
        )
    head_dim = fields.find_size("head_dim") if family.name != "gpt2" else None
    if head_dim is None:
        head_dim = hidden_size // num_heads
    if head_dim < 1 or (family.name == "gpt2" and head_dim * num_heads != hidden_size):
        raise AdapterConfigError(
            f"{quote(fields.name)} has {num_heads} heads, which do not divide width {hidden_size}"
        )
    return num_heads, num_kv_heads, head_dim


def _intermediate_size(family: Family, fields: ConfigFields, hidden_size: int) -> int:
    key = field_name(family, "intermediate_size")
    return fields.get_size(key, 4 * hidden_size if family.name == "gpt2" else None)


def _norm_eps(family: Family, fields: ConfigFields) -> float:
    eps = fields.get_scale(
        field_name(family, "rms_norm_eps"), 1e-5 if family.norm == "layer" else 1e-6
    )
    if not 0 < eps <= 1:
        raise AdapterConfigError(f"{quote(fields.name)} has a norm epsilon of {eps}")
    return eps


def _activation(family: Family, fields: ConfigFields) -> Activation:
    name = fields.find_text(field_name(family, "hidden_act"))
    if name not in _ACTIVATIONS:
        raise AdapterConfigError(
            f"{quote(fields.name)} asks for activation {quote(name)}; supported are "
            + ", ".join(_ACTIVATIONS)
        )
    return _ACTIVATIONS[name]


def _layer_types(family: Family, fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    """Return one attention type per layer; a longer list is cut by index, as the models index it."""
    if not family.has_layer_types:
        return ("full_attention",) * num_layers
    types = fields.get_texts("layer_types")[:num_layers]
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if len(types) < num_layers or unknown:
        raise AdapterConfigError(
            f"{quote(fields.name)} has layer_types for {len(types)} of {num_layers} layers"
            if not unknown
            else f"{quote(fields.name)} has layer type {quote(min(unknown))}, which is not supported"
        )
    return types


def _windows(
    family: Family, fields: ConfigFields, layer_types: tuple[str, ...]
) -> tuple[int | None, ...]:
    window = None if family.name in ("llama", "gpt2") else fields.find_size("sliding_window")
    if family.name == "mistral":
        return (window,) * len(layer_types)
    if window is None and "sliding_attention" in layer_types:
        raise AdapterConfigError(f"{quote(fields.name)} has sliding layers but no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _attention_scale(family: Family, fields: ConfigFields, head_dim: int) -> float:
    if family.scales_embeddings:
        scalar = fields.get_scale("query_pre_attn_scalar", 256)
        if scalar <= 0:
            raise AdapterConfigError(f"{quote(fields.name)} has query_pre_attn_scalar = {scalar}")
        return float(scalar**-0.5)
    if family.name == "gpt2" and not fields.get_flag("scale_attn_weights", True):
        return 1.0
    return float(head_dim**-0.5)


def _logit_softcap(family: Family, fields: ConfigFields) -> float | None:
    # Gemma 3 has the field too, but its attention does not use it.
    if family.name != "gemma2" or fields.values.get("attn_logit_softcapping") is None:
        return None
    cap = fields.get_scale("attn_logit_softcapping", 0.0)
    if cap <= 0:
        raise AdapterConfigError(f"{quote(fields.name)} has attn_logit_softcapping = {cap}")
    return cap


def _rope(fields: ConfigFields, layer_types: tuple[str, ...]) -> tuple[str, ...]:
    parameters = fields.values.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        raise AdapterConfigError(f"{quote(fields.name)} has no usable rope_parameters")
    is_nested = any(isinstance(value, Mapping) for value in parameters.values())
    texts = {}
    for kind in set(layer_types):
        own = parameters.get(kind) if is_nested else parameters
        texts[kind] = _rope_text(own, fields.name)
    return tuple(texts[kind] for kind in layer_types)


def _rope_text(parameters: object, name: str) -> str:
    if not isinstance(parameters, Mapping) or len(parameters) > _MAX_ROPE_FIELDS:
        raise AdapterConfigError(f"{quote(name)} has no usable rope_parameters")
    # `type` is the old spelling of `rope_type`, kept beside it by the config classes.
    values = {
        key: value for key, value in parameters.items() if key != "type" and value is not None
    }
    rope_type = values.setdefault("rope_type", "default")
    if rope_type not in _ROPE_TYPES:
        raise AdapterConfigError(
            f"{quote(name)} has rope type {quote(rope_type)}; supported are {', '.join(_ROPE_TYPES)}"
        )
    fields = ConfigFields(values, name)
    for key, value in values.items():
        if type(value) not in (str, bool):
            _check_rope_number(fields, str(key))
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise AdapterConfigError(
            f"{quote(name)} has a partial_rotary_factor, which is not supported"
        )
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_rope_number(fields: ConfigFields, key: str) -> None:
    value = fields.values[key]
    is_number = type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1e12
    if not is_number or (value == 0 and key in ("rope_theta", "factor")):
        raise AdapterConfigError(
            f"{quote(fields.name)} has rope {quote(key)} = {quote(value)}, expected a finite number"
        )
