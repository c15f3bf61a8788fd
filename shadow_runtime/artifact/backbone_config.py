"""The config of a shadow backbone: copied from the base (implicit, mirror) or read from a file (explicit).

Runs in: API process | GPU worker. Builds no model and imports nothing that a config names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadow_runtime.artifact.backbone_spec import (
    FAMILIES,
    Family,
    field_name,
    get_family,
    normalize_config,
    refuse_variants,
)
from shadow_runtime.artifact.field import ConfigFields
from shadow_runtime.artifact.json_file import read_json_file
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterLimitError,
    AdapterMismatchError,
    UnsupportedStackError,
)
from shadow_runtime.quote import quote
from shadow_runtime.store.directory import AdapterDirectory, open_trusted_file
from shadow_runtime.types import AdapterLimits, BaseGeometry

CONFIG_FILE = "config.json"
_PROJECTED_TYPE = "causal_lm_with_hidden_projection"

# Everything that the attention, MLP, norms or positions of a supported family read. Other fields of a
# Hugging Face config (dropout, token ids, labels, dtype, versions) do not change what the backbone computes.
_MATHS_FIELDS = (
    "activation_function",
    "attention_bias",
    "attn_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "layer_norm_epsilon",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "scale_attn_weights",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "vocab_size",
)

# Weights in another encoding, or code that only the author's classes have.
_FOREIGN_FIELDS = ("auto_map", "quantization_config")


def implicit_config(
    base: BaseGeometry,
    limits: AdapterLimits,
    *,
    num_layers: int,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """Return the base's config with a few fields changed and nothing derived anew, as the packages do.

    Raises:
        AdapterConfigError: the base's family has no such field.
        AdapterLimitError: too many layers.
    """
    check_num_layers(num_layers, limits)
    family = FAMILIES[base.family]
    config = copy.deepcopy(base.hf_config)
    changes = {
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
    }
    for name, value in changes.items():
        key = field_name(family, name)
        if value is None:
            continue
        if key not in config:
            raise AdapterConfigError(
                f"the adapter sets the shadow backbone's {name}, which {base.family} models do not have"
            )
        config[key] = value
    return config


def check_num_layers(num_layers: int, limits: AdapterLimits) -> None:
    """Raise `AdapterLimitError` before anything per layer is built for an absurd number of layers."""
    if num_layers > limits.max_shadow_layers:
        raise AdapterLimitError(
            f"the shadow backbone has {num_layers} layers, the server allows {limits.max_shadow_layers}"
        )


def pad_layer_types(config: dict[str, Any]) -> None:
    """Repeat the last of `layer_types` in place where there are more layers, as peft's mirror does."""
    types = config.get("layer_types")
    if isinstance(types, list) and types:
        types.extend(types[-1:] * (config["num_hidden_layers"] - len(types)))


def find_explicit_config(
    directory: AdapterDirectory, backbone_config: Path | None
) -> tuple[dict[str, Any], str] | None:
    """Return the raw config of an explicit backbone and its name, or None when there is none.

    Args:
        directory: of the adapter; its config.json counts when `backbone_config` is None.
        backbone_config: a config file, or a directory with config.json, that the operator named.

    Raises:
        AdapterFileError, AdapterConfigError: the file is there but unusable.
    """
    if backbone_config is not None:
        path = backbone_config / CONFIG_FILE if backbone_config.is_dir() else backbone_config
        return read_json_file(open_trusted_file(path), path.name), path.name
    if directory.has(CONFIG_FILE):
        return read_json_file(directory.open_file(CONFIG_FILE), CONFIG_FILE), CONFIG_FILE
    return None


def explicit_config(
    raw: dict[str, Any], name: str, base: BaseGeometry, limits: AdapterLimits
) -> dict[str, Any]:
    """Return the normalised fields of an explicit backbone's config file.

    Args:
        raw: parsed config of a causal language model, or of a projected one that nests it.
        name: of the file, for messages.
        base: whose width a projected config must name.
        limits: bound the number of layers before anything per layer is built.

    Raises:
        AdapterConfigError: another family, or a field is mistyped or not supported.
        AdapterMismatchError: the projection is for another width.
        AdapterLimitError: too many layers.
    """
    raw = _unwrap_projected(ConfigFields(raw, name), base)
    fields = ConfigFields(raw, name)
    try:
        family = get_family(raw, "shadow backbone")
    except UnsupportedStackError as error:
        raise AdapterConfigError(str(error)) from None
    for key in _FOREIGN_FIELDS:
        if raw.get(key):
            raise AdapterConfigError(f"{quote(name)} sets {quote(key)}, which is not supported")
    refuse_variants(fields)
    check_num_layers(fields.get_size(_spelling(family, raw, "num_hidden_layers")), limits)
    return normalize_config(family.name, {key: raw[key] for key in _MATHS_FIELDS if key in raw})


def _unwrap_projected(fields: ConfigFields, base: BaseGeometry) -> dict[str, Any]:
    if fields.values.get("model_type") != _PROJECTED_TYPE:
        return dict(fields.values)
    width = fields.get_size("base_hidden_size")
    if width != base.hidden_size:
        raise AdapterMismatchError(
            f"the shadow backbone projects to width {width}, the base model has {base.hidden_size}"
        )
    inner = fields.values.get("shadow_model_config")
    if not isinstance(inner, dict):
        raise AdapterConfigError(f"{quote(fields.name)} lacks the object 'shadow_model_config'")
    return inner


def _spelling(family: Family, raw: Mapping[str, Any], name: str) -> str:
    """Return the key that a file uses for `name`: GPT-2 configs may use either spelling."""
    own = field_name(family, name)
    return name if own not in raw and name in raw else own


def require_explicit(found: tuple[dict[str, Any], str] | None) -> tuple[dict[str, Any], str]:
    """Return `found`, or raise `AdapterConfigError` that says which file is missing."""
    if found is None:
        raise AdapterConfigError(
            "the adapter names an explicit shadow backbone, which this server never downloads; put its"
            f" {CONFIG_FILE} beside the adapter or give it at registration"
        )
    return found


def refuse_backbone_config(path: Path | None) -> None:
    """Raise `AdapterFileError` where a backbone config was given for an adapter that brings none."""
    if path is not None:
        raise AdapterFileError(
            "a backbone config was given, but the adapter mirrors the base and has no explicit backbone"
        )
