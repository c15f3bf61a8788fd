"""The boundary of a slot computes in fp64 what the adapter's own tensors compute; tensors are rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shadow_kernels.ops.boundary.reference import boundary_reference
from shadow_runtime.artifact import CanonicalAdapter
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import AdapterLimitError
from shadow_runtime.slots.image import build_image
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.types import BackboneSpec

pytestmark = pytest.mark.usefixtures("dirty_memory")

HIDDEN_SIZE = 16
NUM_LAYERS = 5
NUM_TOKENS = 7
SLOT = 1
EXACT = 1e-12
WHOLE = ShardPlan((0, NUM_LAYERS), has_backbone=True)
_ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu}

# The boundary ------------------------------------------------------------------------------------

DIALECTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "peft": {
        "format": "peft",
        "activation": "gelu",
        "has_norm": False,
        "has_update_bias": True,
        "injects": (True,) * NUM_LAYERS,
        "updates": (False, True, True, True, True),
    },
    "partial": {
        "injects": (False, True, False, True, False),
        "updates": (False, False, False, True, False),
    },
    "widest": {"injection_rank": 4, "gate_size": 6, "scale": 2.0},
}


def canonical_boundary(
    adapter: CanonicalAdapter, layer: int, h: torch.Tensor, s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (h, s) behind boundary `layer`, (num_tokens, D) fp64, from canonical tensors."""
    manifest = adapter.manifest
    own = {
        name.removeprefix("boundary."): tensor.double()
        for name, tensor in adapter.tensors.items()
        if name.startswith("boundary.")
    }
    if manifest.updates[layer]:
        x = h
        if manifest.has_norm:
            x = F.layer_norm(h, h.shape[1:], own["norm_weight"], own["norm_bias"], 1e-5)
        branches = []
        for part in (0, 1):
            u = x @ own["update_in"][layer, part].T
            if manifest.has_update_bias:
                u = u + own["update_in_bias"][layer, part]
            z = _ACTIVATIONS[manifest.activation](u) @ own["update_out"][layer, part]
            branches.append(
                z + own["update_out_bias"][layer, part] if manifest.has_update_bias else z
            )
        s = s + torch.sigmoid(branches[1]) * (branches[0] - s)
    if manifest.injects[layer]:
        h = h + manifest.scale * ((h - s) @ own["down"][layer].T) @ own["up"][layer]
    return h, s


@pytest.mark.parametrize("layers", [(0, 5), (0, 2), (2, 5), (4, 5)], ids=str)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_stage_holds_the_boundaries_of_its_layers(
    dialect: str,
    layers: tuple[int, int],
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    adapter = make_adapter(make_spec(), seed=9, **DIALECTS[dialect])
    plan = ShardPlan(layers, has_backbone=layers[0] == 0)
    stacks = write_slot(adapter, make_config(make_spec()), plan)
    assert len(stacks.layers) == layers[1] - layers[0]
    hidden, state = torch.randn(
        2, NUM_TOKENS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    slots = torch.tensor([SLOT, -1, SLOT, SLOT, -1, SLOT, SLOT])
    mine = slots == SLOT
    num_changed = 0
    for index, layer in enumerate(range(*layers)):
        h, s = boundary_reference(hidden.clone(), None, state.clone(), slots, stacks.layers[index])
        expected = canonical_boundary(adapter, layer, hidden, state)
        for got, want, old in zip((h, s), expected, (hidden, state), strict=True):
            assert torch.isfinite(got).all()
            assert (got[mine] - want[mine]).abs().max() < EXACT
            assert torch.equal(got[~mine], old[~mine])
            num_changed += int((want - old).abs().max() > 0.05)
    wanted = [*adapter.manifest.injects[slice(*layers)], *adapter.manifest.updates[slice(*layers)]]
    assert num_changed == sum(wanted)


def test_a_stage_without_backbone_has_no_backbone_stacks(
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
) -> None:
    config, plan = make_config(make_spec(), make_spec(norm="layer")), ShardPlan((3, 5), False)
    adapter = make_adapter(make_spec())
    image = build_image(adapter, config, plan, hidden_size=HIDDEN_SIZE, dtype=torch.float32)
    assert image.backbone == {}
    assert len(AdapterStacks(config, plan, HIDDEN_SIZE, torch.float32).backbones) == 0
    # Rank 4 and gate 6 of the config, two layers, the norm's two vectors; four bytes each.
    elements = 2 * (2 * 4 * 16 + 2 * 2 * 6 * 16 + 2 * 6 + 2 * 16) + 2 * 16
    assert image.num_bytes == 4 * elements


def test_an_adapter_that_fits_nowhere_is_refused(
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    with pytest.raises(AdapterLimitError, match="fits no slot class"):
        write_slot(make_adapter(make_spec(norm="layer")), make_config(make_spec()))


# Dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("served", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_are_rounded_once_to_the_models_dtype(
    stored: torch.dtype,
    served: torch.dtype,
    make_spec: Callable[..., BackboneSpec],
    make_adapter: Callable[..., CanonicalAdapter],
    make_config: Callable[..., ShadowConfig],
    write_slot: Callable[..., AdapterStacks],
) -> None:
    spec = make_spec(qkv_bias=True)
    adapter = make_adapter(spec, dtype=stored, scale=0.1)
    image = build_image(adapter, make_config(spec), WHOLE, hidden_size=HIDDEN_SIZE, dtype=served)
    weights = [t for name, t in image.backbone.items() if not name.endswith(".extents")]
    assert {t.dtype for t in (*image.boundary.values(), *weights)} == {served}
    tensors = adapter.tensors
    assert torch.equal(image.boundary["down"][:, :3], tensors["boundary.down"].to(served))
    fused = torch.cat([tensors[f"backbone.layers.1.{n}.weight"] for n in "qkv"]).to(served)
    assert torch.equal(image.backbone["layers.1.qkv.weight"], fused)
    # alpha is not a tensor: it stays fp32 whatever the model's dtype.
    stacks = write_slot(adapter, make_config(spec), dtype=served)
    assert stacks.scale[SLOT] == torch.tensor(0.1, dtype=torch.float32)
