"""The shadow backbones of a mixed batch: each token with its own adapter's weights, and nobody else's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from shadow_runtime.config import ShadowConfig, SlotClass
from shadow_runtime.errors import ConfigError
from shadow_runtime.vllm_bridge import backbone as backbone_module
from shadow_runtime.vllm_bridge.backbone import (
    ShadowBackbone,
    SlotLinear,
    SlotNorm,
    SlotRows,
)

NAN = math.nan
SLOTS = torch.tensor([2, -1, 4, 3, 0, 2, -1, 3], dtype=torch.int32)
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms": lambda width: LlamaRMSNorm(width, eps=1e-3),
    "gemma_rms": lambda width: Gemma3RMSNorm(width, eps=1e-3),
    "layer": lambda width: nn.LayerNorm(width, eps=1e-3),
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return zero-mean fp64 noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poisoned(stack: torch.Tensor, *used: int) -> torch.Tensor:
    """Return a copy with NaN in every slot but the used ones."""
    out = torch.full_like(stack, NAN)
    out[list(used)] = stack[list(used)]
    return out


# Rows --------------------------------------------------------------------------------------------


def test_rows_of_a_class_are_those_of_its_slots() -> None:
    # The class owns slots 2 and 3.
    rows = SlotRows.of(SLOTS, first_slot=2, num_slots=2)
    assert rows.index.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert rows.mask.squeeze(1).tolist() == [True, False, False, True, False, True, False, True]


def test_gather_never_reads_another_slot() -> None:
    stack = randn(2, 5)
    own = SlotRows.of(SLOTS, 2, 2).gather(stack)
    for row, slot in zip(own, SLOTS.tolist(), strict=True):
        expected = stack[slot - 2] if slot in (2, 3) else torch.zeros(5)
        assert torch.equal(row, expected.double())


def test_gather_keeps_nan_of_unused_slots_out() -> None:
    # Slot 2 is the one that foreign tokens are pointed at; here nobody uses it.
    slots = torch.tensor([-1, 3, 0, 4], dtype=torch.int32)
    stack = poisoned(randn(2, 5), 1)
    got = SlotRows.of(slots, 2, 2).gather(stack)
    assert torch.isfinite(got).all()
    assert torch.equal(got[1], stack[1])
    assert not got[[0, 2, 3]].any()


# Norms -------------------------------------------------------------------------------------------


def reference_norms(kind: str, width: int) -> list[nn.Module]:
    """Return two modules of the kind with random weights, fp64."""
    modules = [NORMS[kind](width).double() for _ in range(2)]
    for seed, module in enumerate(modules):
        for index, parameter in enumerate(module.parameters()):
            parameter.data.copy_(randn(width, seed=10 * seed + index))
    return modules


def slot_norm(kind: str, modules: list[nn.Module], dtype: torch.dtype, unused: int) -> SlotNorm:
    """Return the norm of a class of three slots, two of which hold the modules' weights."""
    used = [slot for slot in range(3) if slot != unused]
    stacks: dict[str, torch.Tensor] = {}
    for name, _ in modules[0].named_parameters():
        stack = torch.full((3, modules[0].weight.shape[0]), NAN, dtype=torch.float64)
        for slot, module in zip(used, modules, strict=True):
            stack[slot] = module.get_parameter(name).data
        stacks[name] = stack.to(dtype)
    spec: Any = SimpleNamespace(norm=kind, norm_eps=1e-3)
    return SlotNorm(spec, stacks["weight"], stacks.get("bias"))


@pytest.mark.parametrize("unused", [0, 2])
@pytest.mark.parametrize(
    ("kind", "num_heads"),
    [("rms", None), ("rms", 3), ("gemma_rms", None), ("gemma_rms", 3), ("layer", None)],
)
def test_every_norm_kind_is_the_reference_module(
    kind: str, num_heads: int | None, unused: int
) -> None:
    width, modules = 10, reference_norms(kind, 10)
    used = [slot for slot in range(3) if slot != unused]
    # The class owns slots 2 to 4; token 1 and 4 are the base's and another class's.
    slots = torch.tensor([2 + used[0], -1, 2 + used[1], 2 + used[0], 0], dtype=torch.int32)
    shape = (5, width) if num_heads is None else (5, num_heads, width)
    x = 3 * randn(*shape, seed=5) + 0.5
    x[[1, 4]] = 0
    norm = slot_norm(kind, modules, torch.float32, unused)
    got = norm(x.float(), SlotRows.of(slots, 2, 3))
    for token, module in ((0, modules[0]), (2, modules[1]), (3, modules[0])):
        expected = module(x[token]).detach()
        assert (got[token].double() - expected).abs().max() < 5e-6
        assert (expected - x[token]).abs().max() > 0.1
    # Rows of other tokens: exact zeros in, exact zeros out.
    assert not got[[1, 4]].any()


@pytest.mark.parametrize("kind", ["rms", "gemma_rms"])
def test_norms_round_where_the_reference_rounds(kind: str) -> None:
    modules = reference_norms(kind, 64)
    norm = slot_norm(kind, modules, torch.bfloat16, unused=2)
    x = randn(50, 64, seed=6).bfloat16()
    slots = torch.arange(50, dtype=torch.int32) % 2
    got = norm(x, SlotRows.of(slots, 0, 3))
    for token in range(50):
        expected = modules[token % 2].bfloat16()(x[token])
        assert torch.equal(got[token], expected)


def test_the_comparison_sees_a_swapped_slot() -> None:
    modules = reference_norms("rms", 10)
    norm = slot_norm("rms", modules[::-1], torch.float32, unused=2)
    x = randn(1, 10)
    got = norm(x.float(), SlotRows.of(torch.zeros(1, dtype=torch.int32), 0, 3))
    assert (got.double() - modules[0](x)).abs().max() > 0.1


# Linears -----------------------------------------------------------------------------------------


def test_linear_rows_of_other_classes_are_exact_zeros(make_executor: Any, make_config: Any) -> None:
    executor = make_executor(make_config())
    executor.begin_step(SLOTS[SLOTS < 4].numpy())
    slots = SLOTS[SLOTS < 4]
    stacks = executor.stacks.backbones[1]
    for buffer in stacks.buffers():
        buffer.fill_(NAN if buffer.is_floating_point() else -1)
    # Of class 1 only slot 2 is filled: slot 3 stays NaN, and its tokens with it.
    weight = randn(32, 48)
    stacks["projection.weight"][0] = weight
    x = randn(len(slots), 48, seed=1).float()
    x[slots != 2] = NAN
    out = SlotLinear(stacks, "projection", 2, executor.segments)(x)
    for row, slot, token in zip(out, slots.tolist(), x, strict=True):
        if slot == 2:
            expected = weight.float().double() @ token.double()
            assert (row.double() - expected).abs().max() < 1e-5
        elif slot == 3:
            assert row.isnan().all()
        else:
            assert torch.equal(row, torch.zeros(32))


def test_every_product_is_compiled_for_the_largest_step(
    make_config: Callable[..., ShadowConfig],
    make_executor: Callable[[ShadowConfig], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = make_executor(make_config())
    stacks, segments = executor.stacks.backbones[1], executor.segments
    names = ("layers.0.qkv", "layers.0.down", "projection")
    products = [SlotLinear(stacks, name, 2, segments) for name in names]
    backbone = nn.ModuleList([nn.ModuleList(products[:2]), products[2]])
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        backbone_module.shadow_kernels,
        "compile_slot_linear",
        lambda *call, **options: calls.append((*call, *options.values())),
    )
    ShadowBackbone.compile_ahead(backbone)  # type: ignore[arg-type]
    assert [call[0].data_ptr() for call in calls] == [p.weight.data_ptr() for p in products]
    assert {call[3:] for call in calls} == {(2, segments.max_tokens, None, 1)}


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("learned", "served"), [(0, 4096), (512, 512), (512, 100)])
def test_positions_that_reach_far_enough_pass(
    learned: int, served: int, make_config: Callable[..., ShadowConfig]
) -> None:
    backbone_module._check_positions(with_positions(make_config(), learned), served)


def with_positions(config: ShadowConfig, learned: int) -> ShadowConfig:
    """Return the config with learned positions in its last class."""
    *others, last = config.slot_classes
    spec = replace(last.spec, learned_positions=learned)
    return replace(config, slot_classes=(*others, SlotClass(last.name, spec, last.num_slots)))


def test_learned_positions_that_end_too_early_are_refused(
    make_config: Callable[..., ShadowConfig],
) -> None:
    config = with_positions(make_config(), 512)
    with pytest.raises(ConfigError, match=r"own-embeddings.*512 positions.*max_model_len 513"):
        backbone_module._check_positions(config, 513)


@pytest.mark.parametrize(
    ("base_window", "window", "expected"), [(8, None, None), (8, 8, 8), (None, None, None)]
)
def test_a_base_window_never_becomes_the_backbones(
    base_window: int | None, window: int | None, expected: int | None
) -> None:
    # vLLM takes the cache config's window for a layer that names none.
    shared: Any = SimpleNamespace(sliding_window=base_window, block_size=16)
    used = backbone_module._cache_config(shared, window)
    assert (used.sliding_window if window is None else window) == expected
    assert used.block_size == 16
    assert shared.sliding_window == base_window
