"""The peft format: what Hugging Face `peft` writes for `peft_type: SHADOW`.

Runs in: API process | GPU worker.

Injections before and updates after every wrapped layer, a contiguous range; exact GELU, biases, no norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shadow_runtime.artifact.backbone_config import (
    explicit_config,
    find_explicit_config,
    implicit_config,
    pad_layer_types,
    refuse_backbone_config,
    require_explicit,
)
from shadow_runtime.artifact.backbone_spec import FAMILIES, spec_from_config
from shadow_runtime.artifact.boundary import dead_updates_dropped, pack_rows
from shadow_runtime.artifact.field import ConfigFields
from shadow_runtime.artifact.json_file import read_json_file
from shadow_runtime.artifact.plan import (
    AdapterPlan,
    Tensors,
    check_backbone,
    check_hidden_size,
    check_widths,
    get_entry,
)
from shadow_runtime.artifact.tensor_file import TensorEntry
from shadow_runtime.artifact.tensor_rule import backbone_rules, projection_rules
from shadow_runtime.artifact.wrapped_layer import wrapped_layers
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
)
from shadow_runtime.quote import quote, quote_first
from shadow_runtime.store.directory import AdapterDirectory
from shadow_runtime.types import AdapterLimits, BackboneSpec, BaseGeometry

CONFIG_FILE = "adapter_config.json"
_TENSOR_FILE = "adapter_model.safetensors"
_MIRROR = "mirror"
_BACKBONE_PREFIX = "backbone."
_PROJECTION = "projection.weight"
_PARTS = ("shadow_update_transform", "shadow_update_gate")
_BLOCK_TENSORS = ("shadow_down", "shadow_up", *_PARTS)
_KNOWN_FIELDS = frozenset(
    {
        "auto_mapping",  # names a class, which is never imported
        "auxiliary_loss_weight",  # training only
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "inference_mode",
        "init_weights",  # training only
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "r",
        "revision",
        "shadow_alpha",
        "shadow_dropout",  # training only
        "shadow_hidden_size",
        "shadow_intermediate_size",
        "shadow_model",
        "shadow_num_attention_heads",
        "shadow_num_hidden_layers",
        "share_embeddings",
        "target_modules",
        "task_type",
        "update_hidden_size",
    }
)


def read_config(directory: AdapterDirectory) -> ConfigFields:
    """Return the checked fields of adapter_config.json.

    Raises:
        AdapterFileError, AdapterConfigError: unreadable, of another peft type or task, unknown fields, or a
            trained head.
    """
    values = read_json_file(directory.open_file(CONFIG_FILE), CONFIG_FILE)
    fields = ConfigFields(values, CONFIG_FILE)
    if values.get("peft_type") != "SHADOW":
        raise AdapterConfigError(
            f"the adapter is of peft type {quote(values.get('peft_type'))}, expected 'SHADOW'"
        )
    fields.refuse_unknown(_KNOWN_FIELDS)
    if fields.find_text("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterConfigError(
            f"the adapter is for task {quote(values['task_type'])}, only CAUSAL_LM is served"
        )
    if fields.find_text("bias") not in (None, "none"):
        raise AdapterConfigError(f"the adapter trains biases of the base ({quote(values['bias'])})")
    heads = fields.get_texts("modules_to_save")
    if heads:
        raise AdapterConfigError(
            f"the adapter trains modules of the base ({quote_first(heads)}), which adapters that share a"
            " base cannot replace"
        )
    return fields


def tensor_file_name(directory: AdapterDirectory) -> str:
    """Return the file with the adapter's tensors.

    Raises:
        AdapterFileError: there is none, or only a pickle.
    """
    if not directory.has(_TENSOR_FILE) and directory.has("adapter_model.bin"):
        raise AdapterFileError(
            "the adapter is a pickle ('adapter_model.bin'), which is never loaded; load it with peft and"
            " call save_pretrained with safe_serialization=True"
        )
    return _TENSOR_FILE


def plan(
    fields: ConfigFields,
    directory: AdapterDirectory,
    entries: Mapping[str, TensorEntry],
    base: BaseGeometry,
    limits: AdapterLimits,
    backbone_config: Path | None,
) -> AdapterPlan:
    """Return the plan for a checkpoint in the peft format; see `dialect_paper.plan`."""
    file_keys = _short_keys(entries, FAMILIES[base.family].layer_stack)
    entries = {key: entries[name] for key, name in file_keys.items()}
    layers = _wrapped_range(fields, entries, base)
    rank, gate = _boundary_sizes(fields, entries, layers, base, limits)
    spec, unused_vocab_size = _backbone(fields, directory, entries, base, limits, backbone_config)
    check_backbone(spec, base, limits)
    injects = tuple(layer in layers for layer in range(base.num_layers))
    updates = dead_updates_dropped(injects, frozenset(layer + 1 for layer in layers))
    rules = backbone_rules(spec, _BACKBONE_PREFIX, unused_vocab_size=unused_vocab_size)
    rules += projection_rules(spec, _PROJECTION, base.hidden_size)
    return AdapterPlan(
        format="peft",
        injection_rank=rank,
        gate_size=gate,
        scale=fields.get_scale("shadow_alpha", 0.1),
        activation="gelu",
        has_norm=False,
        has_update_bias=True,
        injects=injects,
        updates=updates,
        backbone=spec,
        entries=entries,
        file_keys=file_keys,
        boundary_shapes=_boundary_shapes(layers, rank, gate, base.hidden_size),
        build_boundary=lambda tensors: _build_boundary(tensors, layers, updates),
        rules=tuple(rules),
        notes=_base_name_notes(fields, base),
    )


def _short_keys(entries: Mapping[str, TensorEntry], layer_stack: str) -> dict[str, str]:
    """Return the file's names by short keys: layers.N.shadow_down.weight, backbone.*, projection.weight."""
    stack = re.escape(layer_stack)
    names = "|".join(_BLOCK_TENSORS)
    block = re.compile(
        rf"base_model\.model\.{stack}\.(\d{{1,6}})\.({names})\.(?:default\.)?(.+)", re.ASCII
    )
    model = re.compile(r"base_model\.shadow_(backbone|projection)\.(?:default\.)?(.+)", re.ASCII)
    file_keys: dict[str, str] = {}
    for name in entries:
        _refuse_head(name)
        if match := block.fullmatch(name):
            key = f"layers.{int(match[1])}.{match[2]}.{match[3]}"
        else:
            match = model.fullmatch(name)
            key = f"{match[1]}.{match[2]}" if match else name
        if key in file_keys:
            raise AdapterTensorError(
                f"tensor {quote(name)} is there twice, with and without prefix"
            )
        file_keys[key] = name
    return file_keys


def _refuse_head(name: str) -> None:
    if (
        name.startswith("base_model.shadow_head.")
        or ".lm_head." in name
        or ".modules_to_save." in name
    ):
        raise AdapterTensorError(
            f"the checkpoint holds a trained head ({quote(name)}), which adapters that share a base cannot"
            " replace"
        )


def _wrapped_range(
    fields: ConfigFields, entries: Mapping[str, TensorEntry], base: BaseGeometry
) -> range:
    """Return the wrapped layers; the tensors tell, the config must agree."""
    found = {int(key.split(".")[1]) for key in entries if key.startswith("layers.")}
    if not found:
        raise AdapterTensorError(
            "the checkpoint has no tensors for any layer of this base's family"
        )
    layers = range(min(found), max(found) + 1)
    if layers.stop > base.num_layers:
        raise AdapterMismatchError(
            f"the adapter wraps layer {layers.stop - 1}, this base has {base.num_layers} layers"
        )
    if len(found) != len(layers):
        raise AdapterTensorError("the wrapped layers are not a contiguous range")
    stated = wrapped_layers(fields, FAMILIES[base.family].layer_stack, base.num_layers)
    if stated != found:
        raise AdapterMismatchError(
            f"the checkpoint wraps layers {layers.start} to {layers.stop - 1}, but its config wraps"
            f" {len(stated)} layers of this base"
        )
    return layers


def _boundary_sizes(
    fields: ConfigFields,
    entries: Mapping[str, TensorEntry],
    layers: range,
    base: BaseGeometry,
    limits: AdapterLimits,
) -> tuple[int, int]:
    stated_rank = fields.get_size("r", 8)
    stated_gate = fields.get_size("update_hidden_size", stated_rank)
    rank, hidden_size = get_entry(entries, f"layers.{layers[0]}.shadow_down.weight", 2).shape
    check_hidden_size(hidden_size, base)
    gate = get_entry(entries, f"layers.{layers[0]}.shadow_update_gate.0.weight", 2).shape[0]
    check_widths(max(rank, stated_rank), max(gate, stated_gate), limits)
    if (rank, gate) != (stated_rank, stated_gate):
        raise AdapterConfigError(
            f"{quote(CONFIG_FILE)} states rank and update width {stated_rank} and {stated_gate}, the tensors"
            f" have {rank} and {gate}"
        )
    return rank, gate


def _backbone(
    fields: ConfigFields,
    directory: AdapterDirectory,
    entries: Mapping[str, TensorEntry],
    base: BaseGeometry,
    limits: AdapterLimits,
    backbone_config: Path | None,
) -> tuple[BackboneSpec, int]:
    """Return the backbone's geometry and the rows of an embedding that is stored but not used."""
    mirror_fields = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    sizes = {name: fields.find_size(f"shadow_{name}") for name in mirror_fields}
    may_share = fields.get_flag("share_embeddings", True)
    if (fields.find_text("shadow_model") or _MIRROR) != _MIRROR:
        found = require_explicit(find_explicit_config(directory, backbone_config))
        return _explicit_spec(*found, entries, base, limits), 0
    refuse_backbone_config(backbone_config)
    config = implicit_config(
        base,
        limits,
        num_layers=sizes["num_hidden_layers"] or 1,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
    )
    pad_layer_types(config)
    has_projection = (sizes["hidden_size"] or base.hidden_size) != base.hidden_size
    is_shared = may_share and not has_projection
    vocab_size = 0 if is_shared else base.vocab_size
    spec = spec_from_config(
        config, vocab_size=vocab_size, has_projection=has_projection, name=CONFIG_FILE
    )
    return spec, base.vocab_size if is_shared and base.family == "gpt2" else 0


def _explicit_spec(
    raw: dict[str, Any],
    name: str,
    entries: Mapping[str, TensorEntry],
    base: BaseGeometry,
    limits: AdapterLimits,
) -> BackboneSpec:
    config = explicit_config(raw, name, base, limits)
    vocab_size = ConfigFields(config, name).get_size("vocab_size")
    return spec_from_config(
        config, vocab_size=vocab_size, has_projection=_PROJECTION in entries, name=name
    )


def _boundary_shapes(layers: range, rank: int, gate: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        shapes[f"layers.{layer}.shadow_down.weight"] = (rank, width)
        shapes[f"layers.{layer}.shadow_up.weight"] = (width, rank)
        for part in _PARTS:
            shapes[f"layers.{layer}.{part}.0.weight"] = (gate, width)
            shapes[f"layers.{layer}.{part}.0.bias"] = (gate,)
            shapes[f"layers.{layer}.{part}.2.weight"] = (width, gate)
            shapes[f"layers.{layer}.{part}.2.bias"] = (width,)
    return shapes


def _build_boundary(
    tensors: Tensors, layers: range, updates: tuple[bool, ...]
) -> dict[str, torch.Tensor]:
    num_layers = len(updates)
    downs = {layer: tensors[f"layers.{layer}.shadow_down.weight"] for layer in layers}
    ups = {layer: tensors[f"layers.{layer}.shadow_up.weight"].T for layer in layers}
    rank, width = downs[layers[0]].shape
    gate = tensors[f"layers.{layers[0]}.shadow_update_gate.0.weight"].shape[0]
    packed: dict[str, dict[tuple[int, int], torch.Tensor]] = {
        name: {} for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    for boundary in (layer for layer, is_updated in enumerate(updates) if is_updated):
        for part, container in enumerate(_PARTS):
            for name, rows in packed.items():
                # Boundary l updates from the output of layer l - 1.
                rows[boundary, part] = tensors[f"layers.{boundary - 1}.{container}.{name}"]
    outs: dict[tuple[int, int], torch.Tensor] = {
        index: row.T for index, row in packed["2.weight"].items()
    }
    return {
        "boundary.down": pack_rows(downs, (num_layers, rank, width)),
        "boundary.up": pack_rows(ups, (num_layers, rank, width)),
        "boundary.update_in": pack_rows(packed["0.weight"], (num_layers, 2, gate, width)),
        "boundary.update_in_bias": pack_rows(packed["0.bias"], (num_layers, 2, gate)),
        "boundary.update_out": pack_rows(outs, (num_layers, 2, gate, width)),
        "boundary.update_out_bias": pack_rows(packed["2.bias"], (num_layers, 2, width)),
    }


def _base_name_notes(fields: ConfigFields, base: BaseGeometry) -> tuple[str, ...]:
    trained_on = Path(fields.find_text("base_model_name_or_path") or "").name
    served = Path(str(base.hf_config.get("_name_or_path") or "")).name
    if trained_on and served and trained_on != served:
        return (f"the adapter was trained on {quote(trained_on)}, the base is {quote(served)}",)
    return ()
