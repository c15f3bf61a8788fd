"""A slot holds one adapter: nothing of its predecessor stays, and its neighbours are not touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shadow_runtime.artifact import CanonicalAdapter
from shadow_runtime.config import ShadowConfig, SlotClass
from shadow_runtime.slots.image import SlotImage, build_image
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks, TensorStacks
from shadow_runtime.types import BackboneSpec

HIDDEN_SIZE = 16
PLAN = ShardPlan((0, 5), has_backbone=True)
BIASED = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
PEFT: dict[str, Any] = {"activation": "gelu", "has_norm": False, "has_update_bias": True}


@pytest.fixture
def config(make_spec: Callable[..., BackboneSpec]) -> ShadowConfig:
    """Return three slots of a wide class with biases and two of a class with layer norms."""
    wide = make_spec(num_layers=3, num_heads=12, num_kv_heads=4, intermediate_size=17, **BIASED)
    layered = make_spec(norm="layer", vocab_size=9)
    return ShadowConfig(
        (SlotClass("wide", wide, 3), SlotClass("layered", layered, 2)),
        max_injection_rank=4,
        max_gate_size=6,
    )


@pytest.fixture
def image_of(
    config: ShadowConfig,
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
) -> Callable[..., SlotImage]:
    """Return `image_of(backbone_fields, **manifest_fields)`, fp32."""

    def image(backbone: dict[str, Any], **changes: Any) -> SlotImage:
        adapter = make_adapter(make_spec(**backbone), **changes)
        return build_image(adapter, config, PLAN, hidden_size=HIDDEN_SIZE, dtype=torch.float32)

    return image


def make_stacks(config: ShadowConfig, fill: float) -> AdapterStacks:
    """Return fp32 stacks that hold `fill` everywhere, and -1 in the flags."""
    stacks = AdapterStacks(config, PLAN, HIDDEN_SIZE, torch.float32)
    for buffer in stacks.buffers():
        buffer.fill_(fill if buffer.is_floating_point() else -1)
    return stacks


def slot_rows(stacks: AdapterStacks, slot: int) -> dict[str, torch.Tensor]:
    """Return copies of everything that belongs to a slot, over all stacks."""
    rows = {name: buffer[slot] for name, buffer in stacks.boundary.named_buffers()}
    rows |= {"flags": stacks.flags[:, slot], "scale": stacks.scale[slot]}
    index, local = (0, slot) if slot < 3 else (1, slot - 3)
    rows |= {n: buffer[local] for n, buffer in stacks.backbones[index].named_buffers()}
    return {name: row.clone() for name, row in rows.items()}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare all rows; NaN equals NaN."""
    assert got.keys() == expected.keys()
    for name, row in got.items():
        torch.testing.assert_close(row, expected[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_nothing_of_the_previous_adapter_stays(
    config: ShadowConfig, image_of: Callable[..., SlotImage]
) -> None:
    large = image_of(
        {"num_layers": 3, "num_heads": 12, "num_kv_heads": 4, "intermediate_size": 17, **BIASED},
        seed=1, injection_rank=4, gate_size=6, scale=2.0,
        injects=(True,) * 5, updates=(False, True, True, True, True), **PEFT,
    )  # fmt: skip
    small = image_of({"num_layers": 1, "num_heads": 1, "num_kv_heads": 1}, seed=2)
    stacks, fresh = make_stacks(config, math.nan), make_stacks(config, 0.0)
    stacks.write(1, large)
    after_large = slot_rows(stacks, 1)
    stacks.write(1, small)
    fresh.write(1, small)
    rows = slot_rows(stacks, 1)
    assert_same(rows, slot_rows(fresh, 1))
    assert all(torch.isfinite(row).all() for row in rows.values())
    # Not vacuous: the larger adapter had something in every tensor but the norm that it lacks.
    assert all(row.any() for name, row in after_large.items() if "norm" not in name)


def test_neighbouring_slots_are_not_touched(
    config: ShadowConfig, image_of: Callable[..., SlotImage]
) -> None:
    stacks = make_stacks(config, math.nan)
    before = {slot: slot_rows(stacks, slot) for slot in range(5)}
    stacks.write(1, image_of({}))
    for slot in (0, 2, 3, 4):
        assert_same(slot_rows(stacks, slot), before[slot])


def test_slots_are_numbered_through_the_classes(
    config: ShadowConfig, image_of: Callable[..., SlotImage]
) -> None:
    image = image_of({"norm": "layer", "vocab_size": 9}, seed=4)
    assert image.class_index == 1
    stacks = make_stacks(config, math.nan)
    before = {slot: slot_rows(stacks, slot) for slot in range(5)}
    stacks.write(4, image)
    for slot in range(4):
        assert_same(slot_rows(stacks, slot), before[slot])
    backbone = stacks.backbones[1]
    assert torch.equal(backbone["embed.weight"][1], image.backbone["embed.weight"])
    assert torch.equal(stacks.boundary["down"][4], image.boundary["down"])


def test_an_image_fills_every_stack_of_its_class(image_of: Callable[..., SlotImage]) -> None:
    """A stack that an image leaves out would keep the previous adapter's rows."""
    image = image_of({})
    wide = make_wide_stack_names(image)
    assert image.backbone.keys() == wide


def make_wide_stack_names(image: SlotImage) -> set[str]:
    """Return the names of the wide class's stacks, spelled out."""
    layer = {"input_norm.weight", "mlp_norm.weight", "extents"}
    layer |= {f"{n}.{part}" for n in ("qkv", "o", "up", "down") for part in ("weight", "bias")}
    return {f"layers.{i}.{name}" for i in range(3) for name in layer} | {"norm.weight"}


def test_layer_views_share_the_stacks_memory(
    config: ShadowConfig, image_of: Callable[..., SlotImage]
) -> None:
    # A captured graph holds these views: a write must be seen through them.
    stacks = make_stacks(config, math.nan)
    views = [weights.up for weights in stacks.layers]
    image = image_of({}, seed=5)
    stacks.write(2, image)
    for layer, view in enumerate(views):
        assert torch.equal(view[2], image.boundary["up"][layer])
    assert torch.equal(torch.stack([w.flags[2] for w in stacks.layers]), image.flags)
    assert all(w.scale[2] == 0.75 for w in stacks.layers)


def test_stacks_are_buffers_that_no_checkpoint_knows(config: ShadowConfig) -> None:
    stacks = AdapterStacks(config, PLAN, HIDDEN_SIZE, torch.bfloat16)
    assert list(stacks.parameters()) == []
    assert stacks.state_dict() == {}
    assert not any(buffer.any() for buffer in stacks.buffers())


def test_a_missing_stack_is_found_as_none() -> None:
    stacks = TensorStacks(2, {"norm.weight": (3,)}, torch.float32)
    assert stacks.find("norm.bias") is None
    assert stacks.find("norm.weight") is stacks["norm.weight"]
    with pytest.raises(KeyError):
        stacks["norm.bias"]


def test_a_tensor_of_the_wrong_shape_is_refused() -> None:
    stacks = TensorStacks(2, {"norm.weight": (3,)}, torch.float32)
    with pytest.raises(ValueError, match="does not fit"):
        stacks.write(0, {"norm.weight": torch.zeros(4)})
    with pytest.raises(ValueError, match="does not fit"):  # as many bytes
        stacks.write(0, {"norm.weight": torch.zeros(6, dtype=torch.bfloat16)})
