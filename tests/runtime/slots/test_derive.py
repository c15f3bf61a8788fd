"""Slot classes from the options and the adapters named at start."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from reference_adapters import FAMILIES, build_config
from shadow_runtime.artifact import base_geometry
from shadow_runtime.artifact.backbone_spec import spec_from_config
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import ConfigError
from shadow_runtime.slots.derive import SlotOptions, derive_config
from shadow_runtime.slots.layout import choose_class, find_misfit
from shadow_runtime.types import AdapterManifest, BackboneSpec, BaseGeometry

MIXED_QWEN2 = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


def base_of(family: str, **fields: Any) -> BaseGeometry:
    """Return the geometry of a small base: width 64, four layers, head size 32."""
    return base_geometry(build_config(family, **fields))


def backbone_of(base: BaseGeometry, vocab_size: int = 0, **fields: Any) -> BackboneSpec:
    """Return a backbone with the base's config, some fields of it replaced."""
    return spec_from_config(
        base.hf_config | fields, vocab_size=vocab_size, has_projection=False, name="a test"
    )


def only_spec(config: ShadowConfig) -> BackboneSpec:
    """Return the spec of a config with one class."""
    (slot_class,) = config.slot_classes
    return slot_class.spec


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_the_papers_one_layer_backbone(family: str) -> None:
    base = base_of(family)
    config = derive_config(base, [])
    spec = only_spec(config)
    assert (config.max_injection_rank, config.max_gate_size) == (16, 10)
    # Eight that a step may mix, and two more that pins may take.
    assert (config.num_slots, config.max_host_adapters) == (10, 256)
    assert (config.max_resident_adapters, config.max_pinned_adapters) == (8, 2)
    assert (spec.num_layers, spec.intermediate_size, spec.hidden_size) == (1, 256, 64)
    assert (spec.family, spec.vocab_size, spec.has_projection) == (family, 0, False)
    heads = base.hf_config.get("num_attention_heads", base.hf_config.get("n_head"))
    assert spec.num_heads == heads


def test_options_size_the_implicit_class() -> None:
    options = SlotOptions(
        shadow_layers=3,
        shadow_intermediate_size=48,
        shadow_heads=2,
        max_injection_rank=5,
        max_gate_size=7,
        max_resident_adapters=3,
        max_host_adapters=11,
        max_pinned_adapters=4,
        max_adapter_wait_seconds=0.5,
        adapter_quantum_tokens=33,
    )
    config = derive_config(base_of("qwen3"), [], options)
    spec = only_spec(config)
    assert (spec.num_layers, spec.intermediate_size, spec.num_heads) == (3, 48, 2)
    assert (spec.num_kv_heads, spec.head_dim, len(spec.windows)) == (2, 32, 3)
    assert (config.max_injection_rank, config.max_gate_size) == (5, 7)
    assert (config.num_slots, config.max_host_adapters) == (7, 11)
    assert (config.max_resident_adapters, config.max_pinned_adapters) == (3, 4)
    assert (config.max_adapter_wait_seconds, config.adapter_quantum_tokens) == (0.5, 33)


def test_gpt2_spells_its_sizes_its_own_way() -> None:
    options = SlotOptions(shadow_layers=2, shadow_intermediate_size=48, shadow_heads=1)
    spec = only_spec(derive_config(base_of("gpt2"), [], options))
    assert (spec.num_layers, spec.intermediate_size, spec.num_heads) == (2, 48, 1)
    assert spec.head_dim == 64


def test_host_tier_grows_with_the_slots() -> None:
    options = SlotOptions(max_resident_adapters=300)
    assert derive_config(base_of("llama"), [], options).max_host_adapters == 302


def test_named_adapters_alone_decide_the_sizes(
    make_manifest: Callable[..., AdapterManifest],
) -> None:
    base = base_of("llama")
    deep = backbone_of(base, num_hidden_layers=2, intermediate_size=20)
    broad = backbone_of(base, num_hidden_layers=1, intermediate_size=90)
    manifests = [
        make_manifest(deep, injection_rank=8, gate_size=3),
        make_manifest(broad, injection_rank=4, gate_size=6),
    ]
    config = derive_config(base, manifests)
    spec = only_spec(config)
    # Not the default's 256 columns, rank 16 or gate 10.
    assert (spec.num_layers, spec.intermediate_size) == (2, 90)
    assert (config.max_injection_rank, config.max_gate_size) == (8, 6)


def test_options_and_adapters_together_widen(make_manifest: Callable[..., AdapterManifest]) -> None:
    base = base_of("llama")
    own = make_manifest(backbone_of(base, num_hidden_layers=2, intermediate_size=20))
    config = derive_config(base, [own], SlotOptions(shadow_intermediate_size=64))
    spec = only_spec(config)
    assert (spec.num_layers, spec.intermediate_size) == (2, 64)


def test_a_rank_option_below_an_adapters_is_kept_and_refuses_it(
    make_manifest: Callable[..., AdapterManifest],
) -> None:
    base = base_of("llama")
    manifest = make_manifest(backbone_of(base), injection_rank=8, gate_size=3)
    assert (
        derive_config(base, [manifest], SlotOptions(max_injection_rank=4)).max_injection_rank == 4
    )


def test_backbones_of_other_kinds_get_classes_of_their_own(
    make_manifest: Callable[..., AdapterManifest],
) -> None:
    base = base_of("llama")
    shared = backbone_of(base, num_hidden_layers=1)
    own = backbone_of(base, vocab_size=300, num_hidden_layers=2)
    own_wide = backbone_of(base, vocab_size=200, num_hidden_layers=1, intermediate_size=500)
    manifests = [make_manifest(s) for s in (shared, own, own_wide)]
    config = derive_config(base, manifests, SlotOptions(max_resident_adapters=3))
    assert [c.name for c in config.slot_classes] == ["0:llama-1x64", "1:llama-own-embeddings-2x64"]
    assert [c.num_slots for c in config.slot_classes] == [5, 5]
    assert config.max_resident_adapters == 3
    assert [choose_class(config, m) for m in manifests] == [0, 1, 1]
    merged = config.slot_classes[1].spec
    assert (merged.vocab_size, merged.num_layers, merged.intermediate_size) == (300, 2, 500)


def test_every_named_adapter_fits_in_any_order(
    make_manifest: Callable[..., AdapterManifest],
) -> None:
    base = base_of("qwen3")
    specs = [
        backbone_of(base, num_hidden_layers=3, intermediate_size=17),
        backbone_of(base, num_attention_heads=12, num_key_value_heads=4),
        backbone_of(base, vocab_size=300),
        backbone_of(base, num_attention_heads=6, num_key_value_heads=1, intermediate_size=99),
    ]
    manifests = [make_manifest(s) for s in specs]
    for order in (manifests, manifests[::-1], manifests[2:] + manifests[:2]):
        config = derive_config(base, order)
        assert len(config.slot_classes) == 2
        for manifest in manifests:
            chosen = config.slot_classes[choose_class(config, manifest)].spec
            assert find_misfit(manifest.backbone, chosen) is None


def test_backbones_that_cannot_share_a_cache_are_refused(
    make_manifest: Callable[..., AdapterManifest],
) -> None:
    base = base_of("llama")
    specs = (backbone_of(base), backbone_of(base, head_dim=16))
    with pytest.raises(ConfigError, match="cannot share one KV cache: head sizes 32 and 16 differ"):
        derive_config(base, [make_manifest(s) for s in specs])


# A base that mixes window and full attention ------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "qwen2"])
def test_a_hybrid_base_gives_its_kv_heads_to_the_backbone(
    family: str, make_manifest: Callable[..., AdapterManifest]
) -> None:
    # Width 128 and head size 32: four heads over two, also where the family derives the head size.
    fields = {"hidden_size": 128} | (MIXED_QWEN2 if family == "qwen2" else {})
    base = base_of(family, **fields)
    assert len(set(base.hf_config["layer_types"])) == 2
    small = replace(backbone_of(base, num_hidden_layers=1), num_heads=3, num_kv_heads=1)
    config = derive_config(base, [make_manifest(small)])
    spec = only_spec(config)
    assert (spec.num_kv_heads, spec.num_heads, spec.head_dim) == (2, 6, 32)
    assert choose_class(config, make_manifest(small)) == 0


def test_a_uniform_base_leaves_the_kv_heads_alone(
    make_manifest: Callable[..., AdapterManifest],
) -> None:
    base = base_of("qwen3")
    small = replace(backbone_of(base), num_heads=1, num_kv_heads=1)
    assert only_spec(derive_config(base, [make_manifest(small)])) == small


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"head_dim": 16}, "head size 32, at most 2 KV heads.*got head size 16 and 2 KV heads"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 4},
            "head size 32, at most 2 KV heads.*got head size 32 and 4 KV heads",
        ),
    ],
    ids=["head size", "KV heads"],
)
def test_a_hybrid_base_refuses_another_cache_shape(
    fields: dict[str, Any], reason: str, make_manifest: Callable[..., AdapterManifest]
) -> None:
    base = base_of("gemma3_text")
    with pytest.raises(ConfigError, match=reason):
        derive_config(base, [make_manifest(backbone_of(base, **fields))])


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        SlotOptions(shadow_heads=3),
        SlotOptions(shadow_layers=0),
        SlotOptions(shadow_layers=-1),
        SlotOptions(shadow_intermediate_size=0),
        SlotOptions(max_injection_rank=0),
        SlotOptions(max_injection_rank=65),
        SlotOptions(max_gate_size=0),
        SlotOptions(max_resident_adapters=0),
        SlotOptions(max_pinned_adapters=-1),
    ],
    ids=str,
)
def test_sizes_that_no_slot_has_are_refused_as_settings(options: SlotOptions) -> None:
    with pytest.raises(ConfigError):
        derive_config(base_of("qwen3"), [], options)


def test_more_gemma_layers_than_the_base_types_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"implicit slot class.*layer_types for 4 of 6 layers"):
        derive_config(base_of("gemma3_text"), [], SlotOptions(shadow_layers=6))


def test_a_config_travels_to_the_workers(make_manifest: Callable[..., AdapterManifest]) -> None:
    base = base_of("gemma2")
    config = derive_config(base, [make_manifest(backbone_of(base, vocab_size=300))])
    assert ShadowConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
