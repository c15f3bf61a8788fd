"""A canonical adapter as a checkpoint of the peft format.

Runs in: the command's own process. CPU tensors only. The inverse of `dialect_peft`; what a closed gate is written as
is in `closed_gate`. peft keeps an adapter's own name, `default`, in the names of its tensors, and reads no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shadow_runtime.artifact.backbone_spec import FAMILIES
from shadow_runtime.artifact.canonical import CanonicalAdapter
from shadow_runtime.artifact.closed_gate import CLOSED
from shadow_runtime.artifact.tensor_rule import backbone_rules, projection_rules, stored_tensors
from shadow_runtime.types import AdapterManifest, BaseGeometry

TENSOR_FILE = "adapter_model.safetensors"

_PARTS = ("shadow_update_transform", "shadow_update_gate")
_GATE = 1


def backbone_obstacles(manifest: AdapterManifest) -> list[str]:
    """Return why a backbone of the paper format has no place in a peft checkpoint."""
    spec = manifest.backbone
    if spec.vocab_size or spec.has_projection:
        return ["its backbone is an explicit one"]
    return []


def make_config(
    manifest: AdapterManifest, base: BaseGeometry, layers: Sequence[int]
) -> dict[str, Any]:
    """Return adapter_config.json of an adapter of the other format.

    Args:
        manifest: of the adapter.
        base: that it is for.
        layers: with a correction; the range that they span is wrapped.
    """
    spec, stack = manifest.backbone, FAMILIES[base.family].layer_stack
    return {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "peft_type": "SHADOW",
        "r": manifest.injection_rank,
        "shadow_alpha": manifest.scale,
        "shadow_dropout": 0.0,
        "shadow_hidden_size": None,
        "shadow_intermediate_size": spec.intermediate_size,
        "shadow_model": "mirror",
        "shadow_num_attention_heads": spec.num_heads,
        "shadow_num_hidden_layers": spec.num_layers,
        "share_embeddings": True,
        "target_modules": [f"{stack}.{layer}" for layer in _span(layers)],
        "task_type": "CAUSAL_LM",
        "update_hidden_size": manifest.gate_size,
    }


def make_tensors(
    adapter: CanonicalAdapter, base: BaseGeometry, layers: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the checkpoint, by peft's own names; arguments as of `make_config`."""
    spec = adapter.manifest.backbone
    has_embedding = spec.family == "gpt2" and not spec.vocab_size
    rules = backbone_rules(
        spec,
        "base_model.shadow_backbone.default.",
        unused_vocab_size=base.vocab_size if has_embedding else 0,
    )
    rules += projection_rules(spec, "base_model.shadow_projection.default.weight", base.hidden_size)
    made = stored_tensors(rules, adapter.tensors)
    stack = FAMILIES[base.family].layer_stack
    for layer in _span(layers):
        prefix = f"base_model.model.{stack}.{layer}."
        made |= {f"{prefix}{name}": tensor for name, tensor in _block(adapter, layer).items()}
    return made


def _span(layers: Sequence[int]) -> range:
    return range(layers[0], layers[-1] + 1) if layers else range(0)


def _block(adapter: CanonicalAdapter, layer: int) -> dict[str, torch.Tensor]:
    tensors, manifest = adapter.tensors, adapter.manifest
    made = {
        "shadow_down.default.weight": tensors["boundary.down"][layer].clone(),
        "shadow_up.default.weight": tensors["boundary.up"][layer].T.contiguous(),
    }
    # A layer's own update acts in front of the next one.
    after = layer + 1
    is_kept = manifest.has_update_bias and after < len(manifest.updates) and manifest.updates[after]
    for part, name in enumerate(_PARTS):
        update = _update(adapter, after, part) if is_kept else _closed_update(adapter, part)
        made |= {f"{name}.default.{key}": tensor for key, tensor in update.items()}
    return made


def _update(adapter: CanonicalAdapter, layer: int, part: int) -> dict[str, torch.Tensor]:
    tensors = adapter.tensors
    return {
        "0.weight": tensors["boundary.update_in"][layer, part].clone(),
        "0.bias": tensors["boundary.update_in_bias"][layer, part].clone(),
        "2.weight": tensors["boundary.update_out"][layer, part].T.contiguous(),
        "2.bias": tensors["boundary.update_out_bias"][layer, part].clone(),
    }


def _closed_update(adapter: CanonicalAdapter, part: int) -> dict[str, torch.Tensor]:
    down, gate = adapter.tensors["boundary.down"], adapter.manifest.gate_size
    width = down.shape[2]
    return {
        "0.weight": torch.zeros(gate, width, dtype=down.dtype),
        "0.bias": torch.zeros(gate, dtype=down.dtype),
        "2.weight": torch.zeros(width, gate, dtype=down.dtype),
        "2.bias": torch.full((width,), CLOSED if part == _GATE else 0.0, dtype=down.dtype),
    }
