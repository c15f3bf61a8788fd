"""A random LoRA adapter in PEFT's format, for vLLM's own multi-LoRA path: what shadow adapters are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RANK = 16
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def write_lora(base: Path, directory: Path) -> Path:
    """Write rank-16 weights for every linear of a Qwen3 base; return `directory`."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for path, (num_out, num_in) in linears(config).items():
            prefix = f"base_model.model.model.layers.{layer}.{path}"
            for part, shape in (("lora_A", (RANK, num_in)), ("lora_B", (num_out, RANK))):
                values = torch.randn(*shape, generator=generator) * 0.01
                tensors[f"{prefix}.{part}.weight"] = values.bfloat16()
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": [*_ATTENTION, *_MLP],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def linears(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return a layer's linears: path to (outputs, inputs)."""
    hidden, mlp, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
