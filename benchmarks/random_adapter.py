"""Writes adapters with random weights for a base of `engine.write_shape`, in either checkpoint format.

The sizes are those of the published Qwen3-8B adapter: rank 16, gate 8, one shadow layer with MLP 256 and 8 heads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

RANK, GATE, HEADS, MLP = 16, 8, 8, 256
ALPHA = 0.1
_SCALE = 0.01
_PARTS = ("gate", "transform")

AdapterFormat = Literal["paper", "peft"]


def write_adapter(
    base: Path, directory: Path, seed: int, checkpoint_format: AdapterFormat = "paper"
) -> Path:
    """Write a bf16 adapter and return its directory.

    Args:
        base: the base's directory, of which config.json is read.
        directory: where the adapter goes.
        seed: of its weights.
        checkpoint_format: `paper` as shadow-peft writes it, or `peft` as Hugging Face peft does.
    """
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    directory.mkdir(parents=True, exist_ok=True)
    normal = _normal(seed)
    if checkpoint_format == "paper":
        tensors = _paper_boundaries(config, normal) | _backbone(config, "shadow_model.", normal)
        save_file(tensors, directory / "shadow_adapter.safetensors")
        (directory / "shadow_config.json").write_text(json.dumps(_PAPER_CONFIG))
    else:
        prefix = "base_model.shadow_backbone.default."
        tensors = _peft_boundaries(config, normal) | _backbone(config, prefix, normal)
        save_file(tensors, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(_PEFT_CONFIG))
    return directory


_PAPER_CONFIG = {
    "num_shadow_layers": 1,
    "injection_hidden_size": RANK,
    "gate_hidden_size": GATE,
    "alpha": ALPHA,
    "shadow_intermediate_size": MLP,
    "shadow_num_attention_heads": HEADS,
}

_PEFT_CONFIG = {
    "peft_type": "SHADOW",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "update_hidden_size": GATE,
    "shadow_alpha": ALPHA,
    "shadow_model": "mirror",
    "shadow_num_hidden_layers": 1,
    "shadow_intermediate_size": MLP,
    "shadow_num_attention_heads": HEADS,
}


def _normal(seed: int) -> Callable[..., Any]:
    """Return what makes bf16 tensors on the CPU; the numbers come from a GPU where there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*dims: int) -> torch.Tensor:
        return (torch.randn(*dims, device=device, generator=generator) * _SCALE).bfloat16().cpu()

    return normal


def _paper_boundaries(config: dict[str, Any], normal: Callable[..., Any]) -> dict[str, Any]:
    import torch

    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    tensors = {
        "shadow_injection_model.injection_downs": normal(layers - 1, hidden, RANK),
        "shadow_injection_model.injection_ups": normal(layers - 1, RANK, hidden),
        "shadow_update_model.hidden_norm.weight": torch.ones(hidden).bfloat16(),
        "shadow_update_model.hidden_norm.bias": torch.zeros(hidden).bfloat16(),
    }
    for layer in range(layers - 1):
        for part, last in zip(_PARTS, (2, 3), strict=True):
            prefix = f"shadow_update_model.update_{part}s.{layer}."
            tensors[f"{prefix}0.weight"] = normal(GATE, hidden)
            tensors[f"{prefix}{last}.weight"] = normal(hidden, GATE)
    return tensors


def _peft_boundaries(config: dict[str, Any], normal: Callable[..., Any]) -> dict[str, Any]:
    hidden = config["hidden_size"]
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"base_model.model.model.layers.{layer}.shadow_"
        tensors[f"{prefix}down.default.weight"] = normal(RANK, hidden)
        tensors[f"{prefix}up.default.weight"] = normal(hidden, RANK)
        for part in _PARTS:
            update = f"{prefix}update_{part}.default."
            tensors[f"{update}0.weight"] = normal(GATE, hidden)
            tensors[f"{update}0.bias"] = normal(GATE)
            tensors[f"{update}2.weight"] = normal(hidden, GATE)
            tensors[f"{update}2.bias"] = normal(hidden)
    return tensors


def _backbone(config: dict[str, Any], prefix: str, normal: Callable[..., Any]) -> dict[str, Any]:
    import torch

    hidden, head_dim = config["hidden_size"], config["head_dim"]
    query_size, kv_size = HEADS * head_dim, config["num_key_value_heads"] * head_dim
    layer = f"{prefix}layers.0."
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
    norms = {
        f"{prefix}norm.weight": hidden,
        f"{layer}input_layernorm.weight": hidden,
        f"{layer}post_attention_layernorm.weight": hidden,
        f"{attention}q_norm.weight": head_dim,
        f"{attention}k_norm.weight": head_dim,
    }
    return {name: torch.ones(size).bfloat16() for name, size in norms.items()} | {
        f"{attention}q_proj.weight": normal(query_size, hidden),
        f"{attention}k_proj.weight": normal(kv_size, hidden),
        f"{attention}v_proj.weight": normal(kv_size, hidden),
        f"{attention}o_proj.weight": normal(hidden, query_size),
        f"{mlp}gate_proj.weight": normal(MLP, hidden),
        f"{mlp}up_proj.weight": normal(MLP, hidden),
        f"{mlp}down_proj.weight": normal(hidden, MLP),
    }
