"""Every family and kind: the canonical form computes what the reference packages compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from canonical_forward import canonical_logits
from reference_adapters import (
    FAMILIES,
    KINDS,
    base_logits,
    build_adapter,
    build_base,
    reference_logits,
)
from shadow_runtime.artifact import base_geometry, load_adapter

TOKEN_IDS = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(1)).tolist()
TOLERANCE = 1e-4
MARGIN = 0.5


def worst_row(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of log probabilities in any row."""
    return (got.log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()


def check(kind: str, base: Path, adapter: Path) -> None:
    """Compare canonical and reference logits, and both with the base."""
    geometry = base_geometry(AutoConfig.from_pretrained(base))
    expected = reference_logits(kind, base, adapter, TOKEN_IDS)
    got = canonical_logits(base, load_adapter(adapter, geometry), TOKEN_IDS)
    assert worst_row(got, expected) < TOLERANCE
    assert worst_row(expected, base_logits(base, TOKEN_IDS)) > MARGIN


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny base of each family."""
    return build_base(request.param, tmp_path_factory.mktemp(request.param), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_canonical_form_computes_what_the_package_computes(
    base: Path, kind: str, tmp_path: Path
) -> None:
    check(kind, base, build_adapter(kind, base, tmp_path / "adapter", seed=5))


LINEAR_ROPE = {
    "rope_type": "linear",
    "rope_theta": 5000.0,
    "factor": 4.0,
}
# Name: family, fields of the base, kind, options of the adapter.
VARIANTS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "fewer heads": (
        "qwen3",
        {},
        "paper_implicit",
        {"shadow_num_attention_heads": 2, "shadow_num_key_value_heads": 1},
    ),
    "another head size": ("llama", {}, "paper_implicit", {"shadow_head_dim": 16}),
    "heads without head_dim": (
        "qwen2",
        {"hidden_size": 128},
        "paper_implicit",
        {"shadow_num_attention_heads": 2, "shadow_num_key_value_heads": 1},
    ),
    "GPT-2 heads": ("gpt2", {}, "paper_implicit", {"shadow_num_attention_heads": 1}),
    "attention bias": ("qwen3", {"attention_bias": True}, "paper_implicit", {}),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}, "peft_mirror", {}),
    "scaled rope": ("llama", {"rope_parameters": LINEAR_ROPE}, "paper_implicit", {}),
    "sliding window everywhere": ("mistral", {"sliding_window": 5}, "paper_implicit", {}),
    "sliding window in upper layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "paper_implicit_two_layers",
        {},
    ),
    "more mirror layers than typed": (
        "gemma3_text",
        {},
        "peft_mirror",
        {"shadow_num_hidden_layers": 6},
    ),
    "exact gelu": ("gpt2", {"activation_function": "gelu"}, "peft_mirror", {}),
    "unscaled attention": ("gpt2", {"scale_attn_weights": False}, "paper_implicit", {}),
    "default MLP width": ("gpt2", {"n_inner": None}, "peft_mirror_narrow", {}),
    "own embeddings at full width": (
        "gemma2",
        {},
        "peft_mirror",
        {"share_embeddings": False},
    ),
    "own GPT-2 embeddings": ("gpt2", {}, "peft_mirror", {"share_embeddings": False}),
    "last layer not wrapped": ("llama", {}, "peft_partial", {"layers": [0, 1]}),
    "one wrapped layer": ("llama", {}, "peft_partial", {"layers": [3]}),
    "layers_to_transform is ignored": (
        "llama",
        {},
        "peft_mirror",
        {"layers_to_transform": [1, 2]},
    ),
    "layers by pattern": ("qwen3", {}, "peft_mirror", {"target_modules": r".*\.layers\.[12]$"}),
    "layers by suffix": ("qwen3", {}, "peft_mirror", {"target_modules": ["1", "layers.2"]}),
    "layers excluded": ("qwen3", {}, "peft_mirror", {"exclude_modules": ["model.layers.0"]}),
    "update width from rank": ("qwen3", {}, "peft_mirror", {"update_hidden_size": None}),
    "foreign explicit backbone": (
        "gemma3_text",
        {},
        "paper_explicit",
        {"backbone": {"family": "qwen2"}},
    ),
    "GPT-2 backbone of a Llama": ("llama", {}, "paper_explicit", {"backbone": {"family": "gpt2"}}),
    "Gemma backbone of a GPT-2": (
        "gpt2",
        {},
        "paper_explicit",
        {"backbone": {"family": "gemma3_text"}},
    ),
    "explicit fed by the base": ("gemma2", {}, "paper_explicit", {"share_embeddings": True}),
    "explicit of full width": (
        "qwen3",
        {},
        "paper_explicit",
        {"backbone": {"hidden_size": 64}},
    ),
    "nested explicit config": ("qwen3", {}, "paper_explicit", {"projected_config": True}),
    "larger own vocabulary": (
        "qwen3",
        {},
        "paper_explicit",
        {"backbone": {"vocab_size": 300}},
    ),
    "peft explicit": ("llama", {}, "peft_explicit", {}),
    "peft explicit, projected": ("gemma2", {}, "peft_explicit", {"projected_config": True}),
    "peft explicit of full width, projected": (
        "qwen3",
        {},
        "peft_explicit",
        {"projected_config": True, "backbone": {"hidden_size": 64}},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_compute_what_the_package_computes(variant: str, tmp_path: Path) -> None:
    family, sizes, kind, options = VARIANTS[variant]
    base = build_base(family, tmp_path / "base", seed=3, **sizes)
    check(kind, base, build_adapter(kind, base, tmp_path / "adapter", seed=5, **options))


def test_the_comparison_sees_one_wrong_update(tmp_path: Path) -> None:
    base = build_base("llama", tmp_path / "base", seed=3)
    adapter = build_adapter("paper_implicit", base, tmp_path / "adapter", seed=5)
    canonical = load_adapter(adapter, base_geometry(AutoConfig.from_pretrained(base)))
    canonical.tensors["boundary.update_out"][2, 1] *= 1.01
    expected = reference_logits("paper_implicit", base, adapter, TOKEN_IDS)
    assert worst_row(canonical_logits(base, canonical, TOKEN_IDS), expected) > TOLERANCE
