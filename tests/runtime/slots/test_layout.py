"""What fits into a slot, why not, and what a slot costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_runtime.config import CacheGeometry, ShadowConfig, SlotClass
from shadow_runtime.errors import AdapterLimitError
from shadow_runtime.slots.layout import (
    ShardPlan,
    backbone_shape,
    choose_class,
    find_misfit,
    slot_bytes,
    widen,
)
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.types import AdapterManifest, BackboneSpec

HIDDEN_SIZE = 16
OTHER_ROPE = '{"rope_theta":5000.0,"rope_type":"default"}'

# Field: value of an adapter that must not be put into a slot of `target`, and a word of the reason.
MISFITS: dict[str, tuple[Any, str]] = {
    "num_layers": (3, "num_layers is 3, the slot class holds 2"),
    "hidden_size": (8, "hidden_size is 8, the slot class has 16"),
    "intermediate_size": (13, "intermediate_size is 13, the slot class holds 12"),
    "num_heads": (8, "8 heads over 2 KV heads, the slot class 4 over 2"),
    "num_kv_heads": (4, "num_kv_heads is 4, the slot class holds 2"),
    "head_dim": (8, "head_dim is 8, the slot class has 4"),
    "norm": ("gemma_rms", "norm is gemma_rms, the slot class has rms"),
    "norm_eps": (1e-5, "norm_eps is 1e-05, the slot class has 1e-06"),
    "qk_norm": (True, "qk_norm is True, the slot class has False"),
    "qkv_bias": (True, "a qkv_bias and the slot class none"),
    "o_bias": (True, "an? o_bias and the slot class none"),
    "mlp_bias": (True, "a mlp_bias and the slot class none"),
    "mlp": ("plain", "mlp is plain, the slot class has glu"),
    "activation": ("gelu", "activation is gelu, the slot class has silu"),
    "sandwich_norm": (True, "sandwich_norm is True, the slot class has False"),
    "rope": ((OTHER_ROPE, OTHER_ROPE), "rotary parameters differ"),
    "windows": ((None, 8), "sliding windows differ"),
    "attention_scale": (1.0, "attention_scale is 1.0, the slot class has 0.5"),
    "logit_softcap": (50.0, "logit_softcap is 50.0, the slot class has None"),
    "learned_positions": (64, "learned_positions is 64, the slot class has 0"),
    "vocab_size": (40, "own embedding has 40 rows, the slot class holds 0"),
    "embed_scale": (4.0, "embed_scale is 4.0, the slot class has 1.0"),
    "has_projection": (True, "has_projection is True, the slot class has False"),
}
# The rotary table is a formula that reaches as far as the base's sequences; the family is a label.
IRRELEVANT = {"family": "qwen3", "max_position_embeddings": 7}


def test_the_tables_name_every_field() -> None:
    fields = {field.name for field in dataclasses.fields(BackboneSpec)}
    assert MISFITS.keys() | IRRELEVANT.keys() == fields


@pytest.mark.parametrize("field", MISFITS)
def test_a_misfit_is_named(field: str, make_spec: Callable[..., BackboneSpec]) -> None:
    value, reason = MISFITS[field]
    target = make_spec()
    spec = make_spec(**{field: value})
    misfit = find_misfit(spec, target)
    assert misfit is not None
    assert reason.removeprefix("an? ") in misfit
    assert find_misfit(target, target) is None


@pytest.mark.parametrize("field", IRRELEVANT)
def test_labels_do_not_decide_the_fit(field: str, make_spec: Callable[..., BackboneSpec]) -> None:
    assert find_misfit(make_spec(**{field: IRRELEVANT[field]}), make_spec()) is None


SMALLER: dict[str, dict[str, Any]] = {
    "layers": {"num_layers": 1},
    "MLP": {"intermediate_size": 1},
    "one KV group": {"num_heads": 2, "num_kv_heads": 1},
    "smaller groups": {"num_heads": 2, "num_kv_heads": 2},
}


@pytest.mark.parametrize("name", SMALLER)
def test_smaller_backbones_fit(name: str, make_spec: Callable[..., BackboneSpec]) -> None:
    assert find_misfit(make_spec(**SMALLER[name]), make_spec()) is None
    assert find_misfit(make_spec(), make_spec(**SMALLER[name])) is not None


@pytest.mark.parametrize("field", ["qkv_bias", "o_bias", "mlp_bias"])
def test_a_missing_bias_fits(field: str, make_spec: Callable[..., BackboneSpec]) -> None:
    assert find_misfit(make_spec(), make_spec(**{field: True})) is None


def test_own_embeddings_fit_by_rows_but_never_the_bases(
    make_spec: Callable[..., BackboneSpec],
) -> None:
    target = make_spec(vocab_size=40)
    assert find_misfit(make_spec(vocab_size=40), target) is None
    assert find_misfit(make_spec(vocab_size=39), target) is None
    assert "41 rows" in str(find_misfit(make_spec(vocab_size=41), target))
    assert "0 rows" in str(find_misfit(make_spec(), target))


def test_fewer_heads_in_larger_groups_do_not_fit(make_spec: Callable[..., BackboneSpec]) -> None:
    # Three heads of one group are less than four, but no group of the class holds three.
    misfit = find_misfit(make_spec(num_heads=3, num_kv_heads=1), make_spec())
    assert misfit == "it has 3 heads over 1 KV heads, the slot class 4 over 2"


def test_learned_and_rotary_positions_do_not_mix(make_spec: Callable[..., BackboneSpec]) -> None:
    misfit = find_misfit(make_spec(rope=None), make_spec())
    assert misfit == "its position encoding is of another kind than the slot class's"
    assert find_misfit(make_spec(rope=None), make_spec(rope=None)) is None


def test_fewer_learned_positions_do_not_fit(make_spec: Callable[..., BackboneSpec]) -> None:
    spec = make_spec(rope=None, learned_positions=32)
    assert "learned_positions is 32" in str(
        find_misfit(spec, make_spec(rope=None, learned_positions=64))
    )


def test_only_the_layers_of_the_adapter_are_compared(
    make_spec: Callable[..., BackboneSpec],
) -> None:
    shallow = make_spec(num_layers=1)
    target = make_spec(windows=(None, 8), rope=(shallow.rope[0], OTHER_ROPE))
    assert find_misfit(shallow, target) is None
    assert find_misfit(make_spec(), target) is not None


# choose_class -------------------------------------------------------------------------------------


def test_the_first_class_that_holds_an_adapter_is_chosen(
    make_spec: Callable[..., BackboneSpec],
    make_manifest: Callable[..., AdapterManifest],
    make_config: Callable[..., ShadowConfig],
) -> None:
    config = make_config(make_spec(num_layers=1), make_spec(), make_spec(intermediate_size=99))
    assert choose_class(config, make_manifest(make_spec(num_layers=1))) == 0
    assert choose_class(config, make_manifest(make_spec())) == 1
    assert choose_class(config, make_manifest(make_spec(intermediate_size=13))) == 2


def test_a_refusal_names_each_class_and_its_reason(
    make_spec: Callable[..., BackboneSpec],
    make_manifest: Callable[..., AdapterManifest],
    make_config: Callable[..., ShadowConfig],
) -> None:
    config = make_config(make_spec(num_layers=1), make_spec(norm="gemma_rms"))
    with pytest.raises(AdapterLimitError) as caught:
        choose_class(config, make_manifest(make_spec()))
    message = str(caught.value)
    assert "class0: its num_layers is 2, the slot class holds 1" in message
    assert "class1: its norm is rms, the slot class has gemma_rms" in message


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("injection_rank", "injection rank 7 is over this server's maximum of 6"),
        ("gate_size", "gate size 7 is over this server's maximum of 6"),
    ],
)
def test_widths_over_the_servers_maximum_are_refused(
    field: str,
    reason: str,
    make_spec: Callable[..., BackboneSpec],
    make_manifest: Callable[..., AdapterManifest],
    make_config: Callable[..., ShadowConfig],
) -> None:
    config = make_config(make_spec(), max_injection_rank=6, max_gate_size=6)
    with pytest.raises(AdapterLimitError, match=reason):
        choose_class(config, make_manifest(make_spec(), **{field: 7}))
    assert choose_class(config, make_manifest(make_spec(), **{field: 6})) == 0


# widen --------------------------------------------------------------------------------------------

_LAYERS = ((None, "a"), (8, "b"), (None, "a"))


@st.composite
def specs(draw: st.DrawFn, make_spec: Callable[..., BackboneSpec]) -> BackboneSpec:
    """Draw backbones of which most pairs can be widened and some cannot."""
    depth = draw(st.integers(1, 3))
    kv_heads = draw(st.sampled_from((1, 2, 4)))
    windows = tuple(window for window, _ in _LAYERS[:depth])
    if draw(st.integers(0, 7)) == 0:
        windows = (5, *windows[1:])
    return make_spec(
        num_layers=depth,
        windows=windows,
        rope=tuple(json.dumps({"kind": kind}) for _, kind in _LAYERS[:depth]),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * draw(st.integers(1, 3)),
        intermediate_size=draw(st.integers(1, 20)),
        vocab_size=draw(st.sampled_from((30, 30, 40, 0))),
        norm=draw(st.sampled_from(("rms",) * 7 + ("layer",))),
        family=draw(st.sampled_from(("llama", "qwen3"))),
        **{name: draw(st.booleans()) for name in ("qkv_bias", "o_bias", "mlp_bias")},
    )


def shrunk(spec: BackboneSpec) -> list[BackboneSpec]:
    """Return every spec that is one step smaller in one dimension."""
    group = spec.num_heads // spec.num_kv_heads
    steps: list[dict[str, Any]] = [
        {"intermediate_size": spec.intermediate_size - 1},
        {"num_kv_heads": spec.num_kv_heads - 1, "num_heads": (spec.num_kv_heads - 1) * group},
        {"num_heads": spec.num_kv_heads * (group - 1)},
    ]
    if spec.num_layers > 1:
        depth = spec.num_layers - 1
        steps.append(
            {"num_layers": depth, "rope": spec.rope[:depth], "windows": spec.windows[:depth]}
        )
    if spec.vocab_size:
        steps.append({"vocab_size": spec.vocab_size - 1})
    steps += [{n: False} for n in ("qkv_bias", "o_bias", "mlp_bias") if getattr(spec, n)]
    sizes = ("intermediate_size", "num_kv_heads", "num_heads")
    return [
        dataclasses.replace(spec, **step)
        for step in steps
        if all(step.get(name, 1) > 0 for name in sizes)
    ]


@given(data=st.data())
@settings(max_examples=200, deadline=None, database=None)
def test_widened_backbones_hold_both_and_nothing_smaller_does(
    data: st.DataObject, make_spec: Callable[..., BackboneSpec]
) -> None:
    first, second = data.draw(specs(make_spec)), data.draw(specs(make_spec))
    wider, mirrored = widen(first, second), widen(second, first)
    if wider is None:
        assert mirrored is None
        # Only these differences of the drawn specs cannot be padded away.
        assert (
            first.norm != second.norm
            or first.windows[0] != second.windows[0]
            or bool(first.vocab_size) != bool(second.vocab_size)
        )
        return
    # The label of equally deep backbones is the first one's.
    assert mirrored is not None
    assert dataclasses.replace(mirrored, family="x") == dataclasses.replace(wider, family="x")
    for spec in (first, second):
        assert find_misfit(spec, wider) is None
    for smaller in shrunk(wider):
        assert find_misfit(first, smaller) or find_misfit(second, smaller)


def test_widening_mixes_the_larger_sizes_of_both(make_spec: Callable[..., BackboneSpec]) -> None:
    deep = make_spec(num_layers=3, num_heads=3, num_kv_heads=1, vocab_size=7, o_bias=True)
    broad = make_spec(intermediate_size=90, num_heads=4, num_kv_heads=4, vocab_size=9)
    assert widen(deep, broad) == make_spec(
        num_layers=3,
        intermediate_size=90,
        num_heads=12,
        num_kv_heads=4,
        vocab_size=9,
        o_bias=True,
    )


@pytest.mark.parametrize(
    "field",
    [
        f
        for f in MISFITS
        if f not in ("num_layers", "intermediate_size", "num_heads", "num_kv_heads")
    ],
)
def test_what_cannot_be_padded_cannot_be_widened(
    field: str, make_spec: Callable[..., BackboneSpec]
) -> None:
    wider = widen(make_spec(), make_spec(**{field: MISFITS[field][0]}))
    if field in ("qkv_bias", "o_bias", "mlp_bias"):
        assert wider == make_spec(**{field: True})
    else:
        assert wider is None


# Bytes --------------------------------------------------------------------------------------------

PLANS = {
    "whole": ShardPlan((0, 5), has_backbone=True),
    "last stage": ShardPlan((3, 5), has_backbone=False),
    "sharded": ShardPlan((0, 5), has_backbone=True, rank=1, size=2),
    "replicated": ShardPlan((0, 2), has_backbone=True, rank=2, size=3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PLANS)
def test_slot_bytes_are_the_bytes_that_are_allocated(
    name: str, dtype: torch.dtype, make_spec: Callable[..., BackboneSpec]
) -> None:
    gpt2 = make_spec(
        norm="layer", mlp="plain", rope=None, learned_positions=9, vocab_size=11, mlp_bias=True,
        qkv_bias=True, o_bias=True, intermediate_size=13,
    )  # fmt: skip
    gemma = make_spec(
        norm="gemma_rms", sandwich_norm=True, qk_norm=True, has_projection=True, hidden_size=8,
        num_heads=8, num_kv_heads=4, intermediate_size=7,
    )  # fmt: skip
    classes = (SlotClass("gpt2", gpt2, 3), SlotClass("gemma", gemma, 2))
    config = ShadowConfig(classes, max_injection_rank=3, max_gate_size=5)
    stacks = AdapterStacks(config, PLANS[name], HIDDEN_SIZE, dtype)
    # By storage: views of one stack must not count twice, nor a hidden copy be missed.
    storages = {
        b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in stacks.buffers()
    }
    expected = sum(
        c.num_slots * slot_bytes(config, i, HIDDEN_SIZE, PLANS[name], dtype.itemsize)
        for i, c in enumerate(classes)
    )
    assert sum(storages.values()) == expected
    assert expected > 0


@pytest.mark.parametrize(
    ("size", "is_sharded", "heads", "kv_heads", "inner"),
    [(1, False, 12, 4, 13), (2, True, 6, 2, 7), (4, True, 3, 1, 4), (3, False, 12, 4, 13)],
)
def test_a_class_is_sharded_only_where_kv_heads_divide(
    size: int,
    is_sharded: bool,
    heads: int,
    kv_heads: int,
    inner: int,
    make_spec: Callable[..., BackboneSpec],
) -> None:
    classes = (
        SlotClass("groups", make_spec(num_heads=6, num_kv_heads=2, intermediate_size=13), 1),
        SlotClass("heads", make_spec(num_heads=4, num_kv_heads=4), 1),
    )
    shape = backbone_shape(classes[0], CacheGeometry.of(classes), size)
    assert (shape.sharded, shape.num_heads, shape.num_kv_heads) == (is_sharded, heads, kv_heads)
    assert shape.intermediate_size == inner
    assert shape.qkv_rows == (heads + 2 * kv_heads) * 4
