"""Published shapes of Qwen3 as configs without weights, for engines that make random ones."""

from __future__ import annotations

import json
from pathlib import Path

# name: hidden, MLP, layers, heads, KV heads, tied embeddings
SHAPES = {
    "0.6b": (1024, 3072, 28, 16, 8, True),
    "4b": (2560, 9728, 36, 32, 8, True),
    "8b": (4096, 12288, 36, 32, 8, False),
}
VOCAB = 151936


def write_shape(name: str, directory: Path, num_layers: int | None) -> Path:
    """Write the config of a random-weight Qwen3 of a published shape."""
    hidden, mlp, layers, heads, kv_heads, tied = SHAPES[name]
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": num_layers or layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": VOCAB,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
