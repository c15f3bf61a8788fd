"""Adapters that say their own number in every token, and the base that makes it possible.

A canary with number v answers every prompt with the token of v, at every position, by construction. The base's last
layer attends to the first prompt token only. So an output token is told by two things: the weights of the step that
made it, and the adapter whose step wrote the keys and values of the prompt's first block. Only when both are v is the
token that of v; when they differ it is `MIXED`. The bare base says `BASE`, or the token of v over keys and values of v.

How: some axes of the residual stream are kept free of noise. CONST is 1 in every embedding, MARK in that of `BOS`. The
injection before the last layer reads CONST and writes STRENGTH times the code of v to DIRECT, and STRENGTH to ADAPTED.
The last layer's first head carries DIRECT of the first position to ATTENDED; the head's query reads CONST, its key
MARK. The output matrix reads: token of v = (DIRECT + ATTENDED) @ code of v, `MIXED` = 1.5 ADAPTED, `BASE` = CONST / 2.
In units of STRENGTH that is 2, 1.5 and nearly 0 with one code on both axes, and 1, 1.5 and 0 with two. Everything else,
shadow backbone, gates, transforms and the other injections, is random and at work.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

CODE_SIZE = 64
NUM_CODES = 2 * CODE_SIZE
"""Numbers that are told apart; number v and v + NUM_CODES say the same token, with other bytes."""

BOS, MIXED, BASE, FIRST_CODE = 1, 2, 3, 8
STRENGTH = 1000.0

_CONST, _MARK, _ADAPTED = 0, 1, 2
_DIRECT = slice(3, 3 + CODE_SIZE)
_ATTENDED = slice(3 + CODE_SIZE, 3 + 2 * CODE_SIZE)
_NUM_RESERVED = 3 + 2 * CODE_SIZE
_ROTARY_THETA = 1e6
_HEAD_GAIN = 4.0
_RANK, _GATE = 16, 8

Format = Literal["paper", "peft"]


@dataclass(frozen=True, slots=True)
class CanaryShape:
    """Sizes of a Qwen3 base; hidden_size > 131, head_dim >= 64, vocab_size > 160. `dtype` as torch spells it."""

    hidden_size: int = 192
    intermediate_size: int = 128
    num_layers: int = 3
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 64
    vocab_size: int = 256
    dtype: str = "float32"
    max_positions: int = 2048


QWEN3_8B = CanaryShape(4096, 12288, 36, 32, 8, 128, 151936, "bfloat16", 8192)
"""The published shape; its canary has one shadow layer of 8 heads and MLP 256: 58 MB in the paper format."""


def token_of(number: int) -> int:
    """Return the token that canary `number` says."""
    return FIRST_CODE + number % NUM_CODES


def code_of(token: int) -> int | None:
    """Return the number modulo `NUM_CODES` that a token says, None for every other token."""
    return token - FIRST_CODE if FIRST_CODE <= token < FIRST_CODE + NUM_CODES else None


def silent_tokens(vocab_size: int) -> tuple[int, int]:
    """Return first and end of the token ids that no canary says."""
    return FIRST_CODE + NUM_CODES, vocab_size


def canary_prompt(length: int, seed: int, *, vocab_size: int = 256) -> list[int]:
    """Return `BOS` and `length - 1` random token ids that no canary says."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(*silent_tokens(vocab_size), (length - 1,), generator=generator)
    return [BOS, *ids.tolist()]


def build_canary_base(directory: Path, shape: CanaryShape | None = None, *, seed: int = 0) -> Path:
    """Write the base, one file a layer, with a tokenizer of one word per token (`w0 w1 ...`); return its directory."""
    shape = shape or CanaryShape()
    directory.mkdir(parents=True)
    noise = _Noise(seed, shape)
    places: dict[str, str] = {}
    for index in range(shape.num_layers + 1):
        is_layer = index < shape.num_layers
        tensors = _base_layer(shape, index, noise) if is_layer else _base_ends(shape, noise)
        file = f"model-{index:05}.safetensors"
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    index_of = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_of))
    (directory / "config.json").write_text(json.dumps(_base_config(shape)))
    (directory / "canary.json").write_text(json.dumps(asdict(shape)))
    _write_tokenizer(directory, shape.vocab_size)
    return directory


def build_canary(base: Path, directory: Path, number: int, format: Format = "paper") -> Path:
    """Write canary `number` for a base that `build_canary_base` wrote; return its directory."""
    shape = CanaryShape(**json.loads((base / "canary.json").read_text()))
    tensors, config = (_paper if format == "paper" else _peft)(shape, number)
    directory.mkdir(parents=True)
    weights = "shadow_adapter" if format == "paper" else "adapter_model"
    save_file(tensors, directory / f"{weights}.safetensors")
    name = "shadow_config" if format == "paper" else "adapter_config"
    (directory / f"{name}.json").write_text(json.dumps(config))
    return directory


def codes() -> torch.Tensor:
    """Return (NUM_CODES, CODE_SIZE) fp32 rows of length 1, at right angles or opposite to each other."""
    rows = torch.ones(1, 1)
    while len(rows) < CODE_SIZE:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return torch.cat([rows, -rows]) / math.sqrt(CODE_SIZE)


class _Noise:
    """Zero-mean matrices of unit gain in the base's dtype, made on the accelerator where there is one."""

    def __init__(self, seed: int, shape: CanaryShape) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self.dtype = getattr(torch, shape.dtype)

    def __call__(self, *dims: int, gain: float = 1.0, writes: bool = False) -> torch.Tensor:
        """Return (dims) noise; `writes`: its rows are axes of the residual stream, so the reserved ones are zero."""
        values = torch.randn(*dims, device=self._device, generator=self._generator)
        values *= gain / math.sqrt(dims[-1])
        if writes:
            values[:_NUM_RESERVED] = 0
        return values.to(self.dtype).cpu()

    def ones(self, size: int) -> torch.Tensor:
        """Return the gain of a norm that changes nothing."""
        return torch.ones(size, dtype=self.dtype)


def _layer(
    shape: CanaryShape, noise: _Noise, prefix: str, *, heads: int, kv_heads: int, mlp: int
) -> dict[str, torch.Tensor]:
    """Return a random decoder layer that leaves the reserved axes alone."""
    width, size = shape.hidden_size, shape.head_dim
    return {
        f"{prefix}input_layernorm.weight": noise.ones(width),
        f"{prefix}post_attention_layernorm.weight": noise.ones(width),
        f"{prefix}self_attn.q_norm.weight": noise.ones(size),
        f"{prefix}self_attn.k_norm.weight": noise.ones(size),
        f"{prefix}self_attn.q_proj.weight": noise(heads * size, width),
        f"{prefix}self_attn.k_proj.weight": noise(kv_heads * size, width),
        f"{prefix}self_attn.v_proj.weight": noise(kv_heads * size, width),
        f"{prefix}self_attn.o_proj.weight": noise(width, heads * size, writes=True),
        f"{prefix}mlp.gate_proj.weight": noise(mlp, width),
        f"{prefix}mlp.up_proj.weight": noise(mlp, width),
        f"{prefix}mlp.down_proj.weight": noise(width, mlp, writes=True),
    }


def _base_layer(shape: CanaryShape, index: int, noise: _Noise) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{index}."
    tensors = _layer(
        shape,
        noise,
        prefix,
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        mlp=shape.intermediate_size,
    )
    if index == shape.num_layers - 1:
        _wire_first_head(
            shape, {k.removeprefix(f"{prefix}self_attn."): v for k, v in tensors.items()}
        )
    return tensors


def _wire_first_head(shape: CanaryShape, attention: dict[str, torch.Tensor]) -> None:
    """Make the first head copy DIRECT of the first position to ATTENDED, whoever asks."""
    size, slowest = shape.head_dim, shape.head_dim // 2 - 1
    for name in ("q", "k", "v"):
        attention[f"{name}_proj.weight"][:size] = 0
    for name in ("q", "k"):
        attention[f"{name}_norm.weight"][:] = _HEAD_GAIN
    # The slowest rotary pair hardly turns within the context, so the score does not depend on the distance.
    attention["q_proj.weight"][slowest, _CONST] = 100
    attention["k_proj.weight"][slowest, _MARK] = 100
    attention["v_proj.weight"][:CODE_SIZE, _DIRECT] = torch.eye(CODE_SIZE)
    # The layer's norm sees hardly more than DIRECT and ADAPTED, each of length STRENGTH.
    gain = STRENGTH / math.sqrt(shape.hidden_size / 2)
    attention["o_proj.weight"][_ATTENDED, :CODE_SIZE] = gain * torch.eye(CODE_SIZE)


def _base_ends(shape: CanaryShape, noise: _Noise) -> dict[str, torch.Tensor]:
    embeddings = noise(shape.vocab_size, shape.hidden_size, gain=0.2 * math.sqrt(shape.hidden_size))
    embeddings[:, :_NUM_RESERVED] = 0
    embeddings[:, _CONST] = 1
    embeddings[BOS, _MARK] = 1
    head = torch.zeros_like(embeddings)
    said = slice(FIRST_CODE, FIRST_CODE + NUM_CODES)
    head[said, _DIRECT] = head[said, _ATTENDED] = codes().to(head.dtype)
    head[MIXED, _ADAPTED] = 1.5
    head[BASE, _CONST] = 0.5
    return {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": noise.ones(shape.hidden_size),
        "lm_head.weight": head,
    }


def _base_config(shape: CanaryShape) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": _ROTARY_THETA},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": shape.dtype,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _injections(
    shape: CanaryShape, number: int, noise: _Noise, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return downs (count, hidden, rank) and ups (count, rank, hidden) of which the last says the number."""
    width = shape.hidden_size
    downs = noise(count, width, _RANK, gain=math.sqrt(_RANK / width))
    ups = torch.stack([noise(width, _RANK, gain=0.1, writes=True).T for _ in range(count)])
    downs[-1, :, 0] = 0
    downs[-1, _CONST, 0] = 1
    ups[-1, 0] = 0
    ups[-1, 0, _DIRECT] = STRENGTH * codes()[number % NUM_CODES]
    ups[-1, 0, _ADAPTED] = STRENGTH
    return downs, ups


def _shadow_norm(shape: CanaryShape, noise: _Noise) -> torch.Tensor:
    """Return a final norm that keeps CONST out of the shadow state, where the last injection would subtract it."""
    weight = noise.ones(shape.hidden_size)
    weight[_CONST] = 0
    return weight


def _paper(shape: CanaryShape, number: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    noise, width, count = _Noise(number + 1, shape), shape.hidden_size, shape.num_layers - 1
    heads, mlp = max(shape.num_kv_heads, shape.num_heads // 4), min(256, shape.intermediate_size)
    downs, ups = _injections(shape, number, noise, count)
    tensors = {
        "shadow_injection_model.injection_downs": downs,
        "shadow_injection_model.injection_ups": ups.contiguous(),
        "shadow_update_model.hidden_norm.weight": noise.ones(width),
        "shadow_update_model.hidden_norm.bias": torch.zeros(width, dtype=noise.dtype),
        "shadow_model.norm.weight": _shadow_norm(shape, noise),
    }
    for index in range(count):
        for part, second in (("gates", 2), ("transforms", 3)):
            prefix = f"shadow_update_model.update_{part}.{index}."
            tensors[f"{prefix}0.weight"] = noise(_GATE, width)
            tensors[f"{prefix}{second}.weight"] = noise(width, _GATE, writes=True)
    tensors |= _layer(
        shape, noise, "shadow_model.layers.0.", heads=heads, kv_heads=shape.num_kv_heads, mlp=mlp
    )
    config = {
        "num_shadow_layers": 1,
        "injection_hidden_size": _RANK,
        "gate_hidden_size": _GATE,
        "alpha": 1.0,
        "shadow_intermediate_size": mlp,
        "shadow_num_attention_heads": heads,
    }
    return tensors, config


def _peft(shape: CanaryShape, number: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    noise, width, count = _Noise(number + 1, shape), shape.hidden_size, shape.num_layers
    downs, ups = _injections(shape, number, noise, count)
    backbone = "base_model.shadow_backbone.default."
    tensors = {f"{backbone}norm.weight": _shadow_norm(shape, noise)}
    for index in range(count):
        prefix = f"base_model.model.model.layers.{index}.shadow_"
        tensors[f"{prefix}down.default.weight"] = downs[index].T.contiguous()
        tensors[f"{prefix}up.default.weight"] = ups[index].T.contiguous()
        for part in ("gate", "transform"):
            update = f"{prefix}update_{part}.default."
            tensors[f"{update}0.weight"] = noise(_GATE, width)
            tensors[f"{update}0.bias"] = noise(_GATE)
            tensors[f"{update}2.weight"] = noise(width, _GATE, writes=True)
            tensors[f"{update}2.bias"] = noise(width, gain=0.1 * math.sqrt(width), writes=True)
    tensors |= _layer(
        shape,
        noise,
        f"{backbone}layers.0.",
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        mlp=shape.intermediate_size,
    )
    config = {
        "peft_type": "SHADOW",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "update_hidden_size": _GATE,
        "shadow_alpha": 1.0,
        "shadow_model": "mirror",
        "share_embeddings": True,
        "target_modules": [f"model.layers.{index}" for index in range(count)],
    }
    return tensors, config


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
