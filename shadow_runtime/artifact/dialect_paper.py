"""The paper format: what `shadow-peft` writes.

Runs in: API process | GPU worker.

Injections before base layers 1 .. L-1 (set index l - 1) and updates after them; SiLU, one shared LayerNorm, no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from shadow_runtime.artifact.backbone_config import (
    explicit_config,
    find_explicit_config,
    implicit_config,
)
from shadow_runtime.artifact.backbone_spec import spec_from_config
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
from shadow_runtime.artifact.tensor_file import TensorEntry, TensorFile
from shadow_runtime.artifact.tensor_rule import (
    backbone_rules,
    embed_key,
    projection_rules,
)
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
)
from shadow_runtime.quote import quote, quote_first
from shadow_runtime.store.directory import AdapterDirectory
from shadow_runtime.types import AdapterLimits, BackboneSpec, BaseGeometry

CONFIG_FILE = "shadow_config.json"
_TENSOR_FILE = "shadow_adapter.safetensors"
_TRAINER_FILE = "model.safetensors"
_HEADS_FILE = "shadow_modules.safetensors"
_DETACHED_HEAD = "shadow_lm_head"
_WRAPPER_PREFIXES = ("module.", "peft_model.")
_BACKBONE_PREFIX = "shadow_model."
_PROJECTION = "shadow_hidden_projection.weight"
_DOWNS, _UPS = "shadow_injection_model.injection_downs", "shadow_injection_model.injection_ups"
_UPDATE = "shadow_update_model."
_KNOWN_FIELDS = frozenset(
    {
        "alpha",
        "base_model_name_or_path",
        "dropout",  # training only
        "gate_hidden_size",
        "injection_hidden_size",
        "modules_to_save",
        "num_shadow_layers",
        "shadow_head_dim",
        "shadow_intermediate_size",
        "shadow_num_attention_heads",
        "shadow_num_key_value_heads",
    }
)


def read_config(directory: AdapterDirectory) -> ConfigFields:
    """Return the checked fields of shadow_config.json.

    Raises:
        AdapterFileError, AdapterConfigError: unreadable, unknown fields, or a trained head.
    """
    values = read_json_file(directory.open_file(CONFIG_FILE), CONFIG_FILE)
    fields = ConfigFields(values, CONFIG_FILE)
    fields.refuse_unknown(_KNOWN_FIELDS)
    heads = set(fields.get_texts("modules_to_save")) - {_DETACHED_HEAD}
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
    for name in (_TENSOR_FILE, _TRAINER_FILE):
        if directory.has(name):
            return name
    if directory.has("shadow_adapter.pt"):
        raise AdapterFileError(
            "the adapter is a pickle ('shadow_adapter.pt'), which is never loaded; load it with"
            " shadow-peft and call save_pretrained to write 'shadow_adapter.safetensors'"
        )
    raise AdapterFileError(f"the adapter has no file {quote(_TENSOR_FILE)}")


def read_heads(directory: AdapterDirectory, limits: AdapterLimits) -> tuple[str, ...]:
    """Return notes on heads that are ignored.

    Raises:
        AdapterTensorError: a trained head other than the detached one.
    """
    if not directory.has(_HEADS_FILE):
        return ()
    with TensorFile(directory.open_file(_HEADS_FILE), _HEADS_FILE, limits) as file:
        heads = {_strip_wrappers(key).partition(".")[0] for key in file.entries}
    trained = heads - {_DETACHED_HEAD}
    if trained:
        raise AdapterTensorError(
            f"{quote(_HEADS_FILE)} holds trained modules of the base ({quote_first(trained)}), which"
            " adapters that share a base cannot replace"
        )
    return (f"{_DETACHED_HEAD} is for detached mode and was ignored",) if heads else ()


def plan(
    fields: ConfigFields,
    directory: AdapterDirectory,
    entries: Mapping[str, TensorEntry],
    base: BaseGeometry,
    limits: AdapterLimits,
    backbone_config: Path | None,
) -> AdapterPlan:
    """Return the plan for a checkpoint in the paper format.

    Args:
        fields: of shadow_config.json.
        directory: of the adapter.
        entries: header of its tensor file.
        base: shape of the base model.
        limits: what the server allows.
        backbone_config: of an explicit backbone, from the operator.

    Raises:
        AdapterError: the adapter does not fit; see `load_adapter`.
    """
    file_keys = _unwrapped_keys(entries)
    entries = {key: entries[name] for key, name in file_keys.items()}
    rank, gate = _boundary_sizes(fields, entries, base, limits)
    spec, unused_vocab_size = _backbone(fields, directory, entries, base, limits, backbone_config)
    check_backbone(spec, base, limits)
    num_layers = base.num_layers
    injects = tuple(layer > 0 for layer in range(num_layers))
    updates = dead_updates_dropped(injects, frozenset(range(2, num_layers + 1)))
    rules = backbone_rules(spec, _BACKBONE_PREFIX, unused_vocab_size=unused_vocab_size)
    rules += projection_rules(spec, _PROJECTION, base.hidden_size)
    return AdapterPlan(
        format="paper",
        injection_rank=rank,
        gate_size=gate,
        scale=fields.get_scale("alpha", 0.1),
        activation="silu",
        has_norm=True,
        has_update_bias=False,
        injects=injects,
        updates=updates,
        backbone=spec,
        entries=entries,
        file_keys=file_keys,
        boundary_shapes=_boundary_shapes(base, rank, gate),
        build_boundary=lambda tensors: _build_boundary(tensors, updates),
        rules=tuple(rules),
        notes=(),
    )


def _strip_wrappers(key: str) -> str:
    while key.startswith(_WRAPPER_PREFIXES):
        key = key.partition(".")[2]
    return key


def _unwrapped_keys(entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    file_keys: dict[str, str] = {}
    for name in entries:
        key = _strip_wrappers(name)
        if key in file_keys:
            raise AdapterTensorError(f"tensor {quote(key)} is there twice, with and without prefix")
        file_keys[key] = name
    return file_keys


def _boundary_sizes(
    fields: ConfigFields,
    entries: Mapping[str, TensorEntry],
    base: BaseGeometry,
    limits: AdapterLimits,
) -> tuple[int, int]:
    stated = fields.get_size("injection_hidden_size", 16), fields.get_size("gate_hidden_size", 10)
    num_sets, hidden_size, rank = get_entry(entries, _DOWNS, 3).shape
    check_hidden_size(hidden_size, base)
    if num_sets != base.num_layers - 1:
        raise AdapterMismatchError(
            f"the adapter is for a base of {num_sets + 1} layers, this base has {base.num_layers}"
        )
    gate = get_entry(entries, f"{_UPDATE}update_gates.0.0.weight", 2).shape[0]
    check_widths(max(rank, stated[0]), max(gate, stated[1]), limits)
    if (rank, gate) != stated:
        raise AdapterConfigError(
            f"{quote(CONFIG_FILE)} states injection and gate sizes {stated[0]} and {stated[1]}, the tensors"
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
    found = find_explicit_config(directory, backbone_config)
    if found is None:
        config = implicit_config(
            base,
            limits,
            num_layers=fields.get_size("num_shadow_layers", 1),
            intermediate_size=fields.find_size("shadow_intermediate_size"),
            num_heads=fields.find_size("shadow_num_attention_heads"),
            num_kv_heads=fields.find_size("shadow_num_key_value_heads"),
            head_dim=fields.find_size("shadow_head_dim"),
        )
        spec = spec_from_config(config, vocab_size=0, has_projection=False, name=CONFIG_FILE)
        return spec, base.vocab_size if base.family == "gpt2" else 0
    config = explicit_config(*found, base, limits)
    vocab_size = ConfigFields(config, found[1]).get_size("vocab_size")
    has_embedding = _BACKBONE_PREFIX + embed_key(config["model_type"]) in entries
    spec = spec_from_config(
        config,
        vocab_size=vocab_size if has_embedding else 0,
        has_projection=_PROJECTION in entries,
        name=found[1],
    )
    return spec, 0


def _boundary_shapes(base: BaseGeometry, rank: int, gate: int) -> dict[str, tuple[int, ...]]:
    width, num_sets = base.hidden_size, base.num_layers - 1
    shapes: dict[str, tuple[int, ...]] = {
        _DOWNS: (num_sets, width, rank),
        _UPS: (num_sets, rank, width),
        f"{_UPDATE}hidden_norm.weight": (width,),
        f"{_UPDATE}hidden_norm.bias": (width,),
    }
    for index in range(num_sets):
        # In the transforms a dropout sits between activation and second linear.
        for part, second in (("update_transforms", 3), ("update_gates", 2)):
            shapes[f"{_UPDATE}{part}.{index}.0.weight"] = (gate, width)
            shapes[f"{_UPDATE}{part}.{index}.{second}.weight"] = (width, gate)
    return shapes


def _build_boundary(tensors: Tensors, updates: tuple[bool, ...]) -> dict[str, torch.Tensor]:
    downs, ups = tensors[_DOWNS], tensors[_UPS]
    num_sets, width, rank = downs.shape
    num_layers = num_sets + 1
    gate = tensors[f"{_UPDATE}update_gates.0.0.weight"].shape[0]
    ins: dict[tuple[int, int], torch.Tensor] = {}
    outs: dict[tuple[int, int], torch.Tensor] = {}
    for layer in (layer for layer, is_updated in enumerate(updates) if is_updated):
        # Boundary l updates from the output of layer l - 1, which is set l - 2.
        for part, (name, second) in enumerate((("update_transforms", 3), ("update_gates", 2))):
            ins[layer, part] = tensors[f"{_UPDATE}{name}.{layer - 2}.0.weight"]
            outs[layer, part] = tensors[f"{_UPDATE}{name}.{layer - 2}.{second}.weight"].T
    down_rows = {index + 1: down.T for index, down in enumerate(downs)}
    up_rows = {index + 1: up for index, up in enumerate(ups)}
    return {
        "boundary.down": pack_rows(down_rows, (num_layers, rank, width)),
        "boundary.up": pack_rows(up_rows, (num_layers, rank, width)),
        "boundary.update_in": pack_rows(ins, (num_layers, 2, gate, width)),
        "boundary.update_out": pack_rows(outs, (num_layers, 2, gate, width)),
        "boundary.norm_weight": tensors[f"{_UPDATE}hidden_norm.weight"],
        "boundary.norm_bias": tensors[f"{_UPDATE}hidden_norm.bias"],
    }
