"""Tiny random bases and adapters, written by the reference packages' own `save_pretrained`.

Every weight is random and zero-mean (norm gains near one, up projections and gates non-zero), so
that an adapter's logits differ from its base's by far more than any tolerance and a forgotten
tensor shows. `reference_logits` gives what the packages compute.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

FAMILIES = ("qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3_text", "gpt2")
"""Hugging Face `model_type` of every supported family."""

AdapterKind = Literal[
    "paper_implicit",
    "paper_implicit_two_layers",
    "paper_explicit",
    "peft_mirror",
    "peft_mirror_narrow",
    "peft_partial",
    "peft_explicit",
]
KINDS: tuple[AdapterKind, ...] = (
    "paper_implicit",
    "paper_implicit_two_layers",
    "paper_explicit",
    "peft_mirror",
    "peft_mirror_narrow",
    "peft_partial",
)

# These two derive the head size from the width: fewer heads give head_dim 32 at a small width.
_HEADS_FROM_WIDTH = ("qwen2", "gpt2")
_GEMMA = ("gemma2", "gemma3_text")


def _default_heads(family: str, hidden_size: int, head_dim: int) -> int:
    return hidden_size // head_dim if family in _HEADS_FROM_WIDTH else 4


def _family_fields(family: str, num_layers: int, head_dim: int) -> dict[str, Any]:
    if family == "gpt2":
        return {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    fields: dict[str, Any] = {} if family == "qwen2" else {"head_dim": head_dim}
    if family == "mistral":
        fields["sliding_window"] = None
    if family in _GEMMA:
        kinds = ("sliding_attention", "full_attention")
        fields |= {
            "sliding_window": 8,
            "layer_types": [kinds[i % 2] for i in range(num_layers)],
            "query_pre_attn_scalar": head_dim + 16,
        }
    return fields


def build_config(
    family: str,
    *,
    hidden_size: int = 64,
    num_layers: int = 4,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int = 32,
    intermediate_size: int | None = None,
    vocab_size: int = 256,
    **overrides: Any,
) -> PretrainedConfig:
    """Return a small config of `family`; `overrides` are fields of that family's config.

    `num_heads` defaults to 4, or to hidden_size // head_dim where the family derives the head size
    from the width; `num_kv_heads` to half of it (GPT-2 has no grouped heads). No token is special.
    """
    heads = num_heads or _default_heads(family, hidden_size, head_dim)
    if family == "gpt2":
        sizes = {
            "n_embd": hidden_size,
            "n_layer": num_layers,
            "n_head": heads,
            "n_inner": intermediate_size or 2 * hidden_size,
            "n_positions": 512,
        }
    else:
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": num_kv_heads or max(1, heads // 2),
            "intermediate_size": intermediate_size or 2 * hidden_size,
            "max_position_embeddings": 512,
        }
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    fields = sizes | special | _family_fields(family, num_layers, head_dim) | overrides
    return AutoConfig.for_model(family, vocab_size=vocab_size, **fields)


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Fill every parameter with zero-mean noise of unit gain, norm weights around neutral."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_neutral_value(module, name) + _noise_scale(name, parameter) * noise)


def _neutral_value(module: nn.Module, name: str) -> float:
    owner = module.get_submodule(name.rpartition(".")[0])
    is_norm = "norm" in type(owner).__name__.lower()
    # Gemma multiplies by (1 + weight).
    return (
        1.0 if is_norm and name.endswith("weight") and "Gemma" not in type(owner).__name__ else 0.0
    )


def _noise_scale(name: str, parameter: torch.Tensor) -> float:
    if parameter.ndim == 1:
        return 0.1
    if name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight")):
        return 0.2
    if name.endswith("lm_head.weight"):
        return 2.0 / math.sqrt(parameter.shape[-1])
    # Packed (layers, in, out) and Conv1D (in, out) differ from Linear (out, in): take the larger.
    return 1.0 / math.sqrt(max(parameter.shape[-2:]))


def build_base(family: str, directory: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """Write a random fp32 base checkpoint (config and safetensors) and return its directory.

    `sizes` are those of `build_config`: hidden_size=64, num_layers=4, num_heads, num_kv_heads,
    head_dim=32, intermediate_size, vocab_size=256, and any field of the family's config.
    """
    model = AutoModelForCausalLM.from_config(build_config(family, **sizes), dtype=torch.float32)
    randomize(model, seed)
    model.tie_weights()
    model.save_pretrained(directory)
    return Path(directory)


def load_base(base_dir: Path) -> PreTrainedModel:
    """Load a base in fp32 with eager attention (the only one that computes Gemma 2's logit cap)."""
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def build_adapter(
    kind: AdapterKind, base_dir: Path, directory: Path, *, seed: int = 0, **options: Any
) -> Path:
    """Write a random adapter of `kind` for the base at `base_dir` and return its directory.

    Args:
        kind: one of `KINDS`, or `peft_explicit`.
        base_dir: a directory that `build_base` wrote.
        directory: where the adapter goes.
        seed: of its weights.
        options: fields of the package's `ShadowConfig` that override this kind's defaults. The
            explicit kinds also take `backbone` (dict of `build_config` arguments, may name another
            `family`) and `projected_config` (config.json as `causal_lm_with_hidden_projection`);
            `paper_explicit` takes `share_embeddings` (no own embeddings); `peft_partial` takes
            `layers` (default: all but the first and the last).
    """
    directory = Path(directory)
    if kind.startswith("paper"):
        return _build_paper(kind, Path(base_dir), directory, seed, options)
    return _build_peft(kind, Path(base_dir), directory, seed, options)


def _build_paper(
    kind: str, base_dir: Path, directory: Path, seed: int, options: dict[str, Any]
) -> Path:
    from shadow_peft import ShadowConfig, get_shadow_model

    backbone = options.pop("backbone", {})
    projected_config = options.pop("projected_config", False)
    share_embeddings = options.pop("share_embeddings", False)
    defaults: dict[str, Any] = {"alpha": 1.0, "injection_hidden_size": 8, "gate_hidden_size": 10}
    if kind == "paper_implicit_two_layers":
        defaults |= {"num_shadow_layers": 2, "shadow_intermediate_size": 48}
    base = load_base(base_dir)
    shadow = (
        _explicit_backbone(base.config, backbone, share_embeddings)
        if kind == "paper_explicit"
        else None
    )
    model = get_shadow_model(base, ShadowConfig(**(defaults | options)), shadow_model=shadow)
    _randomize_adapter(model, seed)
    model.save_pretrained(directory)
    if shadow is not None:
        _write_backbone_config(shadow.config, base.config, directory, projected=projected_config)
    return directory


def _explicit_backbone(
    base: PretrainedConfig, backbone: dict[str, Any], share_embeddings: bool
) -> PreTrainedModel:
    from shadow_peft import prepare_shadow_model

    fields: dict[str, Any] = {"family": base.model_type, "hidden_size": 32, "num_layers": 2}
    fields |= {"intermediate_size": 48, "vocab_size": base.vocab_size} | backbone
    if share_embeddings:
        fields["hidden_size"] = base.hidden_size
    config = build_config(fields.pop("family"), **fields)
    config.architectures = None
    model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
    return prepare_shadow_model(model, remove_embed_tokens=share_embeddings)


def _write_backbone_config(
    config: PretrainedConfig, base: PretrainedConfig, directory: Path, *, projected: bool
) -> None:
    if not projected:
        config.save_pretrained(directory)
        return
    from shadow_peft.projected_causal_lm import AutoModelForCausalLMWithHiddenProjectionConfig

    module, name = type(config).__module__, type(config).__name__
    AutoModelForCausalLMWithHiddenProjectionConfig(
        shadow_model_class=f"{module.replace('configuration', 'modeling')}:{name[:-6]}Model",
        shadow_model_config_class=f"{module}:{name}",
        shadow_model_config=config.to_dict(),
        base_hidden_size=base.hidden_size,
        vocab_size=base.vocab_size,
    ).save_pretrained(directory)


def _build_peft(
    kind: str, base_dir: Path, directory: Path, seed: int, options: dict[str, Any]
) -> Path:
    from peft import ShadowConfig, get_peft_model

    base = load_base(base_dir)
    backbone = options.pop("backbone", {})
    projected = options.pop("projected_config", False)
    defaults: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "shadow_alpha": 1.0,
        "r": 8,
        "update_hidden_size": 6,
    }
    if kind == "peft_mirror_narrow":
        defaults |= {
            "shadow_hidden_size": base.config.hidden_size // 2,
            "shadow_intermediate_size": 48,
        }
        if base.config.model_type in _HEADS_FROM_WIDTH:
            defaults["shadow_num_attention_heads"] = base.config.num_attention_heads // 2
    if kind == "peft_partial":
        layers = options.pop("layers", range(1, base.config.num_hidden_layers - 1))
        stack = "transformer.h" if base.config.model_type == "gpt2" else "model.layers"
        defaults["target_modules"] = [f"{stack}.{layer}" for layer in layers]
    if kind == "peft_explicit":
        source = directory.with_name(f"{directory.name}-backbone")
        _write_backbone(
            _explicit_backbone(base.config, backbone, False), base.config, source, projected
        )
        defaults["shadow_model"] = str(source)
    model = get_peft_model(base, ShadowConfig(**(defaults | options)))
    _randomize_adapter(model, seed)
    model.save_pretrained(directory)
    if kind == "peft_explicit":
        shutil.copy(source / "config.json", directory)
    return directory


def _write_backbone(
    backbone: PreTrainedModel, base: PretrainedConfig, directory: Path, projected: bool
) -> None:
    """Write a pretrained backbone as peft's `shadow_model` reads it."""
    backbone.save_pretrained(directory)
    if not projected:
        return
    _write_backbone_config(backbone.config, base, directory, projected=True)
    weights = {f"shadow_model.{key}": value for key, value in backbone.state_dict().items()}
    projection = torch.zeros(base.hidden_size, backbone.config.hidden_size)
    weights["shadow_hidden_projection.weight"] = projection
    save_file(weights, directory / "model.safetensors")


def _randomize_adapter(model: nn.Module, seed: int) -> None:
    base_parameters = {
        id(parameter) for name, parameter in model.named_parameters() if "shadow_" not in name
    }
    holder = nn.Module()
    for name, child in model.named_modules():
        owned = [id(parameter) for parameter in child.parameters()]
        if "shadow_" in name and owned and not base_parameters.intersection(owned):
            key = name.replace(".", "__")
            if not any(key.startswith(f"{other}__") for other in holder._modules):
                holder.add_module(key, child)
    randomize(holder, seed)


def load_adapter_model(kind: AdapterKind, base_dir: Path, adapter_dir: Path) -> nn.Module:
    """Load base and adapter with the reference package, in fp32 and evaluation mode."""
    base = load_base(base_dir)
    if kind.startswith("peft"):
        from peft import PeftModel

        return PeftModel.from_pretrained(base, adapter_dir).eval()
    from shadow_peft import ShadowPeftModel

    shadow = _read_explicit_backbone(Path(adapter_dir)) if kind == "paper_explicit" else None
    model = ShadowPeftModel.from_pretrained(base, adapter_dir, shadow_model=shadow)
    if shadow is not None and getattr(shadow, "embed_tokens", True) is None:
        # The package means to see this itself, but asks a getter that raises in transformers 5.
        model._explicit_share_base_embeddings = True
    return model.eval()


def _read_explicit_backbone(adapter_dir: Path) -> PreTrainedModel:
    from shadow_peft import prepare_shadow_model

    fields = json.loads((adapter_dir / "config.json").read_text())
    fields = fields.get("shadow_model_config", fields)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
    keys = load_file(adapter_dir / "shadow_adapter.safetensors")
    owns_embeddings = any(key.endswith(("embed_tokens.weight", "wte.weight")) for key in keys)
    return prepare_shadow_model(model, remove_embed_tokens=not owns_embeddings)


@torch.no_grad()
def reference_logits(
    kind: AdapterKind, base_dir: Path, adapter_dir: Path, token_ids: list[int]
) -> torch.Tensor:
    """Return the reference package's logits, (num_tokens, vocab_size) fp32, without any cache."""
    model = load_adapter_model(kind, base_dir, adapter_dir)
    return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float()


@torch.no_grad()
def base_logits(base_dir: Path, token_ids: list[int]) -> torch.Tensor:
    """Return the bare base's logits, (num_tokens, vocab_size) fp32."""
    return (
        load_base(base_dir)(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float()
    )


def copy_adapter(source: Path, directory: Path) -> Path:
    """Copy an adapter directory, so that a test may damage the copy."""
    return Path(shutil.copytree(source, directory))
