"""Bases that are supported, bases that are not, and what their configs mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import BertConfig

from reference_adapters import FAMILIES as REFERENCE_FAMILIES
from reference_adapters import build_config
from shadow_runtime.artifact import FAMILIES, base_geometry
from shadow_runtime.artifact.backbone_spec import spec_from_config
from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.types import BackboneSpec


def spec_of(family: str, **sizes: Any) -> BackboneSpec:
    """Return the spec of a tiny config."""
    config = build_config(family, **sizes).to_dict()
    return spec_from_config(config, vocab_size=0, has_projection=False, name="config.json")


def test_the_references_cover_every_family() -> None:
    assert set(FAMILIES) == set(REFERENCE_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_object_and_dict_mean_the_same(family: str) -> None:
    config = build_config(family)
    geometry = base_geometry(config)
    assert geometry == base_geometry(config.to_dict())
    assert (geometry.family, geometry.hidden_size, geometry.num_layers) == (family, 64, 4)
    assert geometry.vocab_size == 256


def test_unsupported_family_lists_the_supported() -> None:
    with pytest.raises(UnsupportedStackError, match="'bert'; supported are qwen3, qwen2, llama"):
        base_geometry(BertConfig())


@pytest.mark.parametrize(
    "config", [{}, {"model_type": ["llama"]}, {"model_type": "llama", "vocab_size": "x"}]
)
def test_unusable_config_is_unsupported(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedStackError):
        base_geometry(config)


@pytest.mark.parametrize(
    ("family", "field"),
    [("gpt2", "scale_attn_by_inverse_layer_idx"), ("gemma3_text", "use_bidirectional_attention")],
)
def test_unsupported_variant_of_a_base_is_named(family: str, field: str) -> None:
    with pytest.raises(UnsupportedStackError, match=field):
        base_geometry(build_config(family, **{field: True}))


def test_a_quantised_base_is_none_of_our_business() -> None:
    config = build_config("llama")
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    assert base_geometry(config).family == "llama"


def test_gemma_scales_and_caps() -> None:
    gemma2, gemma3 = spec_of("gemma2"), spec_of("gemma3_text", attn_logit_softcapping=20.0)
    assert gemma2.attention_scale == pytest.approx(48**-0.5)
    assert (gemma2.logit_softcap, gemma3.logit_softcap) == (50.0, None)
    assert gemma2.windows == (8, None, 8, None)
    assert gemma2.norm == "gemma_rms"


def test_gemma3_has_a_rope_per_layer_type() -> None:
    rope = spec_of("gemma3_text").rope
    assert rope is not None
    assert [json.loads(text)["rope_theta"] for text in rope] == [1e4, 1e6, 1e4, 1e6]


def test_rope_text_is_canonical() -> None:
    assert spec_of("llama").rope == ('{"rope_theta":10000.0,"rope_type":"default"}',) * 4


def test_old_llama3_rope_is_modernised() -> None:
    scaling = {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    spec = spec_of("llama", rope_theta=5e5, rope_scaling=scaling)
    assert spec.rope is not None
    expected = {key: value for key, value in scaling.items() if key != "type"}
    assert json.loads(spec.rope[0]) == expected | {"rope_theta": 5e5}


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("gpt2", "gelu_new", "gelu_tanh"),
        ("gpt2", "gelu", "gelu"),
        ("gpt2", "gelu_pytorch_tanh", "gelu_tanh"),
    ],
)
def test_activations(family: str, name: str, expected: str) -> None:
    assert spec_of(family, activation_function=name).activation == expected
