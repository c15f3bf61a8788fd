"""Whole shadow backbones of a mixed batch against each adapter's own tensors, with attention computed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config

from canonical_forward import _Backbone
from reference_adapters import build_adapter
from shadow_kernels.testing import assert_close
from shadow_runtime.artifact import CanonicalAdapter, load_adapter
from shadow_runtime.config import CacheGeometry, ShadowConfig
from shadow_runtime.slots.derive import SlotOptions, derive_config
from shadow_runtime.slots.image import build_image
from shadow_runtime.slots.layout import PRODUCTS
from shadow_runtime.vllm_bridge import backbone as backbone_module
from shadow_runtime.vllm_bridge.backbone import ClassBackbone, ShadowBackbone, SlotRows

NAN = math.nan

BACKBONES: dict[str, dict[str, Any]] = {
    # Unscaled attention beside a class that scales: one attention serves both.
    "gpt2": {"family": "gpt2", "hidden_size": 64, "scale_attn_weights": False},
    "gemma2": {"family": "gemma2", "hidden_size": 16},
    "gemma3": {"family": "gemma3_text"},
    "llama": {"family": "llama", "attention_bias": True, "mlp_bias": True, "num_layers": 1},
}


@pytest.fixture(scope="session")
def adapters(
    library: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], CanonicalAdapter]:
    """Return `adapters(name)`: one of the library or a foreign backbone of `BACKBONES`, each read once."""
    root: Path = tmp_path_factory.mktemp("backbones")
    read: dict[str, CanonicalAdapter] = {}

    def get(name: str) -> CanonicalAdapter:
        if name not in read:
            path = library.paths.get(name)
            if path is None:
                path = build_adapter(
                    "paper_explicit",
                    library.base_dir,
                    root / name,
                    seed=len(name),
                    backbone={"head_dim": 16, "vocab_size": 48} | BACKBONES[name],
                )
            read[name] = load_adapter(path, library.base)
        return read[name]

    return get


class CausalAttention:
    """What vLLM's attention computes for a batch in which every slot is one sequence.

    Rows of tokens without adapter are NaN, as they may be when vLLM pads a batch.
    """

    def __init__(self, slots: torch.Tensor, cache: CacheGeometry, layer: int, scale: float) -> None:
        self.slots, self.cache, self.layer, self.scale = slots, cache, layer, scale
        self.num_calls = 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        cache = self.cache
        q, k, v = (x.unflatten(-1, (-1, cache.head_dim)) for x in (query, key, value))
        assert (q.shape[1], k.shape[1]) == (cache.num_heads, cache.num_kv_heads)
        out = torch.full_like(q, NAN)
        for slot in set(self.slots.tolist()) - {-1}:
            own = torch.nonzero(self.slots == slot).squeeze(1)
            for head in range(q.shape[1]):
                kv_head = head // cache.heads_per_kv_head
                out[own, head] = self._attend(q[own, head], k[own, kv_head], v[own, kv_head])
        return out.flatten(1)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ k.T * self.scale
        if self.cache.logit_softcap is not None:
            scores = self.cache.logit_softcap * torch.tanh(scores / self.cache.logit_softcap)
        distance = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
        window = self.cache.windows[self.layer] or len(q)
        scores = scores.masked_fill((distance < 0) | (distance >= window), -math.inf)
        return scores.softmax(-1) @ v


@pytest.fixture
def vllm_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set an engine config under which rotary tables can be built."""
    served = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))
    monkeypatch.setattr(backbone_module, "get_current_vllm_config", lambda: served)
    with set_current_vllm_config(VllmConfig()):
        yield


class Batch:
    """Sequences of 12 tokens for some slots and six tokens of the bare base, shuffled together."""

    def __init__(self, slots: list[int], hidden_size: int) -> None:
        generator = torch.Generator().manual_seed(8)
        tokens = torch.tensor([s for s in slots for _ in range(12)] + [-1] * 6, dtype=torch.int32)
        self.slots = tokens[torch.randperm(len(tokens), generator=generator)]
        self.positions = torch.zeros(len(tokens), dtype=torch.int64)
        for slot in slots:
            self.positions[self.slots == slot] = torch.arange(12)
        self.ids = torch.randint(0, 48, (len(tokens),), generator=generator)
        self.embeds = torch.randn(len(tokens), hidden_size, generator=generator)
        # Nothing of a base row may be used: neither its embedding nor its id, which may be anything.
        base = self.slots == -1
        self.embeds[base], self.ids[base], self.positions[base] = NAN, 10**6, 10**6


def run_backbone(
    config: ShadowConfig, executor: Any, batch: Batch
) -> tuple[torch.Tensor, list[CausalAttention]]:
    """Run `ShadowBackbone.forward` with attention computed here."""
    cache = CacheGeometry.of(config.slot_classes)
    scale = config.slot_classes[0].spec.attention_scale
    attention = [CausalAttention(batch.slots, cache, i, scale) for i in range(cache.num_layers)]
    classes = [
        ClassBackbone(config, i, stacks, executor.segments, cache, scale, tp_size=1)
        for i, stacks in enumerate(executor.stacks.backbones)
    ]
    whole: Any = SimpleNamespace(
        _segments=[executor.segments],
        _embed=[lambda ids: batch.embeds],
        classes=classes,
        attention=attention,
    )
    whole._has_tokens = lambda c: ShadowBackbone._has_tokens(whole, c)
    executor.begin_step(batch.slots.numpy())
    # A class per batch of positions: base rows point nowhere, so they are clamped as padding is.
    positions = batch.positions.clamp(max=63)
    state = torch.full_like(batch.embeds, NAN)
    assert ShadowBackbone.forward(whole, batch.ids, positions, state) is state
    return state, attention


def load_slots(executor: Any, placed: dict[int, CanonicalAdapter]) -> None:
    """Write adapters into poisoned stacks."""
    for buffer in executor.stacks.buffers():
        buffer.fill_(NAN if buffer.is_floating_point() else 0x55)
    for slot, adapter in placed.items():
        image = build_image(
            adapter,
            executor.config,
            executor.plan,
            hidden_size=executor.hidden_size,
            dtype=torch.float32,
        )
        first = executor.config.first_slot(image.class_index)
        assert first <= slot < first + executor.config.slot_classes[image.class_index].num_slots
        executor.stacks.write(slot, image)
        poison_padding(executor.stacks.backbones[image.class_index], slot - first)


def poison_padding(stacks: Any, slot: int) -> None:
    """Write NaN wherever a slot's weights are larger than its adapter's."""
    for name, weight in stacks.named_buffers():
        layer, _, product = name.removesuffix("__weight").rpartition("__")
        if product not in PRODUCTS or not name.endswith("__weight"):
            continue
        extents = stacks.get_buffer(f"{layer}__extents")
        num_rows, num_columns = extents[slot, PRODUCTS.index(product)].tolist()
        # The rows of a gated MLP are two chunks, each as long as the columns of the product behind it.
        inner = stacks.get_buffer(f"{layer}__down__weight").shape[-1]
        chunks = weight[slot].view(
            -1, inner if product == "up" else len(weight[slot]), weight.shape[2]
        )
        chunks[:, num_rows:], chunks[..., num_columns:] = NAN, NAN


# Name: adapters by slot, three slots to a class in the order in which classes appear.
MIXES: dict[str, dict[int, str]] = {
    "one adapter": {1: "a"},
    "three of one class": {0: "a", 1: "b", 2: "c"},
    "two classes": {2: "a", 0: "d", 4: "own"},
    "own embeddings alone": {1: "own"},
    "gpt2 beside qwen3": {1: "b", 5: "gpt2"},
    "biases beside qwen3": {0: "a", 3: "llama", 4: "llama"},
    "gemma2": {2: "gemma2"},
    "gemma3": {0: "gemma3"},
}


@pytest.mark.usefixtures("vllm_config")
@pytest.mark.parametrize("mix", MIXES)
def test_every_token_gets_its_own_adapters_state(
    mix: str, library: Any, adapters: Callable[[str], CanonicalAdapter], make_executor: Any
) -> None:
    placed = {slot: adapters(name) for slot, name in MIXES[mix].items()}
    # Classes in the order of the slots; three slots each.
    ordered = [placed[slot].manifest for slot in sorted(placed)]
    config = derive_config(
        library.base, ordered, SlotOptions(max_resident_adapters=3, max_pinned_adapters=0)
    )
    executor = make_executor(config)
    load_slots(executor, placed)
    batch = Batch(list(placed), library.base.hidden_size)
    got, attention = run_backbone(config, executor, batch)
    for slot, adapter in placed.items():
        own = batch.slots == slot
        tensors = {name: t.double() for name, t in adapter.tensors.items()}
        oracle = _Backbone(adapter.manifest.backbone, tensors)
        expected = oracle(batch.embeds[own].double(), batch.ids[own])
        assert_close(got[own], expected, f"the state of slot {slot}", amplification=4)
        assert expected.square().mean(1).sqrt().min() > 0.1
    base = batch.slots == -1
    assert torch.equal(got[base], torch.zeros_like(got[base]))
    depth = max(adapter.manifest.backbone.num_layers for adapter in placed.values())
    assert [a.num_calls for a in attention] == [1] * depth


@pytest.mark.usefixtures("vllm_config")
@pytest.mark.parametrize("name", ["a", "own", "gemma3", "gpt2"])
def test_both_ends_of_a_backbone_zero_the_rows_of_others(
    name: str, library: Any, adapters: Callable[[str], CanonicalAdapter], make_executor: Any
) -> None:
    adapter = adapters(name)
    config = derive_config(
        library.base,
        [adapter.manifest],
        SlotOptions(max_resident_adapters=2, max_pinned_adapters=0),
    )
    executor = make_executor(config)
    load_slots(executor, {1: adapter})
    batch = Batch([1], library.base.hidden_size)
    executor.begin_step(batch.slots.numpy())
    cache, stacks = CacheGeometry.of(config.slot_classes), executor.stacks.backbones[0]
    backbone = ClassBackbone(config, 0, stacks, executor.segments, cache, 1.0, tp_size=1)
    rows, others = SlotRows.of(batch.slots, 0, 2), batch.slots == -1
    x = backbone.embed(batch.ids, batch.positions, batch.embeds, rows)
    assert torch.equal(x[others], torch.zeros_like(x[others]))
    assert x[~others].abs().sum(1).min() > 0
    x[others] = NAN
    out = backbone.finish(x, rows)
    assert torch.equal(out[others], torch.zeros_like(out[others]))
    assert out[~others].abs().sum(1).min() > 0


@pytest.mark.usefixtures("vllm_config")
def test_the_comparison_sees_one_wrong_head(
    library: Any, adapters: Callable[[str], CanonicalAdapter], make_executor: Any
) -> None:
    adapter = adapters("a")
    config = derive_config(
        library.base,
        [adapter.manifest],
        SlotOptions(max_resident_adapters=2, max_pinned_adapters=0),
    )
    executor = make_executor(config)
    load_slots(executor, {1: adapter})
    executor.stacks.backbones[0]["layers.0.qkv.weight"][1, -1] *= 1.01
    batch = Batch([1], library.base.hidden_size)
    got, _ = run_backbone(config, executor, batch)
    tensors = {name: t.double() for name, t in adapter.tensors.items()}
    own = batch.slots == 1
    expected = _Backbone(adapter.manifest.backbone, tensors)(
        batch.embeds[own].double(), batch.ids[own]
    )
    with pytest.raises(AssertionError):
        assert_close(got[own], expected, "the state", amplification=4)
