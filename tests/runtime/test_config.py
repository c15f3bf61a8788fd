"""The start-time settings survive their trip to the workers, and contradictions are refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_runtime.config import (
    MAX_RESIDENT_ADAPTERS,
    CacheGeometry,
    ShadowConfig,
    SlotClass,
    find_cache_conflict,
)
from shadow_runtime.errors import ConfigError
from shadow_runtime.types import AdapterLimits, BackboneSpec

SPEC = BackboneSpec(
    family="qwen3",
    num_layers=2,
    hidden_size=64,
    intermediate_size=256,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    norm="rms",
    norm_eps=1e-6,
    qk_norm=True,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    mlp="glu",
    activation="silu",
    sandwich_norm=False,
    rope=('{"rope_theta":1000000.0,"rope_type":"default"}',) * 2,
    windows=(None, 8),
    attention_scale=0.25,
    logit_softcap=None,
    max_position_embeddings=512,
    learned_positions=0,
    vocab_size=0,
    embed_scale=1.0,
    has_projection=False,
)
GPT2 = replace(SPEC, norm="layer", rope=None, learned_positions=128, mlp="plain", vocab_size=300)


def make_config(*specs: BackboneSpec, num_slots: int = 4, **changes: Any) -> ShadowConfig:
    """Return a config with one class of `num_slots` per spec."""
    classes = tuple(SlotClass(f"c{i}", spec, num_slots) for i, spec in enumerate(specs))
    return ShadowConfig(classes, **changes)


def deep(*windows: int | None, **changes: Any) -> BackboneSpec:
    """Return `SPEC` with one layer per window."""
    depth = len(windows)
    return replace(SPEC, num_layers=depth, windows=windows, rope=(SPEC.rope[0],) * depth, **changes)


def through_json(value: Any) -> Any:
    """Return what the worker's process gets."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("spec", [SPEC, GPT2], ids=["rope", "learned"])
def test_spec_survives_json(spec: BackboneSpec) -> None:
    rebuilt = BackboneSpec.from_dict(through_json(spec.to_dict()))
    assert rebuilt == spec
    # Equality of a list and a tuple would fail above; hashing must work too, specs are dict keys.
    assert len({rebuilt, spec}) == 1


def test_config_survives_json_with_every_field() -> None:
    config = make_config(
        SPEC,
        replace(SPEC, hidden_size=32),
        max_injection_rank=7,
        max_gate_size=9,
        max_host_adapters=11,
        limits=AdapterLimits(max_file_bytes=123, max_shadow_layers=3),
    )
    assert ShadowConfig.from_dict(through_json(config.to_dict())) == config
    assert config != make_config(SPEC)


def test_from_dict_leaves_its_argument_as_it_was() -> None:
    data = through_json(make_config(SPEC).to_dict())
    before = json.dumps(data)
    ShadowConfig.from_dict(data)
    assert json.dumps(data) == before


@pytest.mark.parametrize("version", ["0.0.1+abi1", None, "", 3])
def test_settings_of_another_version_are_refused(version: object) -> None:
    data = make_config(SPEC).to_dict() | {"version": version}
    with pytest.raises(ConfigError, match=r"was made by shadow_runtime .*this is \d"):
        ShadowConfig.from_dict(data)


def test_settings_without_a_version_are_refused() -> None:
    data = make_config(SPEC).to_dict()
    del data["version"]
    with pytest.raises(ConfigError, match="was made by"):
        ShadowConfig.from_dict(data)


def test_the_operator_abi_is_part_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM hashes the dict into its compile-cache keys: another operator schema must be another dict.
    before = make_config(SPEC).to_dict()
    monkeypatch.setattr("shadow_runtime.config.OPERATOR_ABI", 999)
    assert make_config(SPEC).to_dict() != before
    with pytest.raises(ConfigError):
        ShadowConfig.from_dict(before)


@pytest.mark.parametrize("num_slots", [-1, 0, MAX_RESIDENT_ADAPTERS + 1])
def test_slot_count_out_of_bounds_is_refused_by_name(num_slots: int) -> None:
    with pytest.raises(ConfigError, match=rf"'wide'.*num_slots must be 1 to 1024, got {num_slots}"):
        SlotClass("wide", SPEC, num_slots)


@pytest.mark.parametrize("num_slots", [1, MAX_RESIDENT_ADAPTERS])
def test_slot_count_bounds_are_inclusive(num_slots: int) -> None:
    assert SlotClass("wide", SPEC, num_slots).num_slots == num_slots


@pytest.mark.parametrize("name", ["max_injection_rank", "max_gate_size"])
@pytest.mark.parametrize("value", [0, -1, 65])
def test_width_out_of_bounds_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be 1 to 64, got {value}"):
        make_config(SPEC, **{name: value})


@pytest.mark.parametrize("name", ["max_injection_rank", "max_gate_size"])
@pytest.mark.parametrize("value", [1, 64])
def test_width_bounds_are_inclusive(name: str, value: int) -> None:
    assert getattr(make_config(SPEC, **{name: value}), name) == value


def test_a_config_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one slot class"):
        ShadowConfig(())


def test_host_tier_smaller_than_the_slots_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_host_adapters \(3\).*4"):
        make_config(SPEC, max_host_adapters=3)
    assert make_config(SPEC, max_host_adapters=4).max_host_adapters == 4


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None, database=None)
def test_classes_share_one_slot_numbering(counts: list[int]) -> None:
    config = ShadowConfig(tuple(SlotClass(f"c{i}", SPEC, count) for i, count in enumerate(counts)))
    numbered = [
        config.first_slot(index) + slot
        for index, count in enumerate(counts)
        for slot in range(count)
    ]
    assert numbered == list(range(config.num_slots))
    assert config.max_resident_adapters == min(counts)


CONFLICTS: dict[str, tuple[BackboneSpec, str]] = {
    "head size": (replace(SPEC, head_dim=32), "head sizes 16 and 32 differ"),
    "logit cap": (replace(SPEC, logit_softcap=50.0), "attention logit caps None and 50.0 differ"),
    "window": (deep(None, 4), "sliding windows 8 and 4 of shadow layer 1 differ"),
    "full attention": (deep(None, None), "sliding windows 8 and None of shadow layer 1 differ"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_backbones_that_cannot_share_a_cache_are_refused(name: str) -> None:
    other, reason = CONFLICTS[name]
    assert find_cache_conflict(SPEC, other) == reason
    with pytest.raises(ConfigError, match=rf"'c0' and 'c1' cannot share one KV cache: {reason}"):
        make_config(SPEC, other)


SHARERS = {
    "more heads": replace(SPEC, num_heads=32, num_kv_heads=4),
    "another width": replace(SPEC, hidden_size=32),
    "another norm": replace(SPEC, norm="layer"),
    "another scale": replace(SPEC, attention_scale=1.0),
    "other positions": GPT2,
    "deeper": deep(None, 8, 4),
    "shallower": deep(None),
}


@pytest.mark.parametrize("name", SHARERS)
def test_other_differences_share_one_cache(name: str) -> None:
    assert find_cache_conflict(SPEC, SHARERS[name]) is None
    assert make_config(SPEC, SHARERS[name]).num_slots == 8


def test_a_conflict_between_later_classes_is_refused() -> None:
    # The first class is too shallow to see the layer in which the others differ.
    with pytest.raises(
        ConfigError, match=r"'c1' and 'c2'.*sliding windows 8 and 4 of shadow layer 1"
    ):
        make_config(deep(None), deep(None, 8), deep(None, 4))


def test_cache_geometry_holds_every_class() -> None:
    few_wide = replace(SPEC, num_heads=12, num_kv_heads=2)
    many_narrow = deep(None, 8, 5, num_heads=8, num_kv_heads=8)
    geometry = CacheGeometry.of(make_config(few_wide, many_narrow).slot_classes)
    assert geometry == CacheGeometry(
        num_layers=3,
        num_kv_heads=8,
        heads_per_kv_head=6,
        head_dim=16,
        windows=(None, 8, 5),
        logit_softcap=None,
    )
    assert geometry.num_heads == 48
    assert CacheGeometry.of(make_config(many_narrow, few_wide).slot_classes) == geometry
