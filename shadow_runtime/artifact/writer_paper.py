"""A canonical adapter as a checkpoint of the paper format.

Runs in: the command's own process. CPU tensors only. The inverse of `dialect_paper`; what a closed gate is written as
is in `closed_gate`.
"""

from __future__ import annotations

from typing import Any

import torch

from shadow_runtime.artifact.canonical import CanonicalAdapter
from shadow_runtime.artifact.closed_gate import CLOSED
from shadow_runtime.artifact.tensor_rule import backbone_rules, projection_rules, stored_tensors
from shadow_runtime.types import AdapterManifest, BaseGeometry

TENSOR_FILE = "shadow_adapter.safetensors"

_BACKBONE_PREFIX = "shadow_model."
_PROJECTION = "shadow_hidden_projection.weight"
_DOWNS, _UPS = "shadow_injection_model.injection_downs", "shadow_injection_model.injection_ups"
_UPDATE = "shadow_update_model."
_PARTS = (("update_transforms", 3), ("update_gates", 2))
_GATE_INPUT = 100.0


def backbone_obstacles(manifest: AdapterManifest) -> list[str]:
    """Return why a backbone of the peft format has no place in a paper checkpoint; one with a config.json has."""
    spec = manifest.backbone
    if spec.vocab_size or spec.has_projection:
        return ["its backbone has embeddings or a width of its own"]
    return []


def make_config(manifest: AdapterManifest) -> dict[str, Any]:
    """Return shadow_config.json of an adapter of the other format."""
    spec = manifest.backbone
    is_gpt2 = spec.family == "gpt2"
    return {
        "alpha": manifest.scale,
        "dropout": 0.0,
        "gate_hidden_size": manifest.gate_size,
        "injection_hidden_size": manifest.injection_rank,
        "modules_to_save": [],
        "num_shadow_layers": spec.num_layers,
        "shadow_head_dim": None,
        "shadow_intermediate_size": spec.intermediate_size,
        "shadow_num_attention_heads": spec.num_heads,
        "shadow_num_key_value_heads": None if is_gpt2 else spec.num_kv_heads,
    }


def make_tensors(adapter: CanonicalAdapter, base: BaseGeometry) -> dict[str, torch.Tensor]:
    """Return the tensors of the checkpoint, by the package's own names."""
    spec = adapter.manifest.backbone
    has_embedding = spec.family == "gpt2" and not spec.vocab_size
    rules = backbone_rules(
        spec, _BACKBONE_PREFIX, unused_vocab_size=base.vocab_size if has_embedding else 0
    )
    rules += projection_rules(spec, _PROJECTION, base.hidden_size)
    return _boundary(adapter) | stored_tensors(rules, adapter.tensors)


def _boundary(adapter: CanonicalAdapter) -> dict[str, torch.Tensor]:
    tensors = adapter.tensors
    # Sets begin at the second layer.
    made = {
        _DOWNS: tensors["boundary.down"][1:].transpose(1, 2).contiguous(),
        _UPS: tensors["boundary.up"][1:].contiguous(),
    }
    return made | (_updates(adapter) if adapter.manifest.has_norm else _closed_updates(adapter))


def _updates(adapter: CanonicalAdapter) -> dict[str, torch.Tensor]:
    """Return the updates as they are; the last set's is never read, and zero."""
    tensors, num_sets = adapter.tensors, len(adapter.manifest.injects) - 1
    made = {
        f"{_UPDATE}hidden_norm.weight": tensors["boundary.norm_weight"],
        f"{_UPDATE}hidden_norm.bias": tensors["boundary.norm_bias"],
    }
    for index in range(num_sets):
        # Set i updates in front of layer i + 2; beyond the last layer there is none to read.
        layer = index + 2 if index + 2 <= num_sets else 0
        for part, (name, second) in enumerate(_PARTS):
            weight_in = tensors["boundary.update_in"][layer, part]
            weight_out = tensors["boundary.update_out"][layer, part]
            made[f"{_UPDATE}{name}.{index}.0.weight"] = weight_in.clone()
            made[f"{_UPDATE}{name}.{index}.{second}.weight"] = weight_out.T.contiguous()
    return made


def _closed_updates(adapter: CanonicalAdapter) -> dict[str, torch.Tensor]:
    """Return updates that change nothing: the norm gives a constant, and its gate is closed."""
    manifest, down = adapter.manifest, adapter.tensors["boundary.down"]
    width, gate = down.shape[2], manifest.gate_size
    bias = torch.zeros(width, dtype=down.dtype)
    bias[0] = 1.0
    made = {
        f"{_UPDATE}hidden_norm.weight": torch.zeros_like(bias),
        f"{_UPDATE}hidden_norm.bias": bias,
    }
    for index in range(len(manifest.injects) - 1):
        for part, (name, second) in enumerate(_PARTS):
            weight_in = torch.zeros(gate, width, dtype=down.dtype)
            weight_out = torch.zeros(width, gate, dtype=down.dtype)
            if part == 1:
                weight_in[0, 0], weight_out[:, 0] = _GATE_INPUT, CLOSED / _GATE_INPUT
            made[f"{_UPDATE}{name}.{index}.0.weight"] = weight_in
            made[f"{_UPDATE}{name}.{index}.{second}.weight"] = weight_out
    return made
