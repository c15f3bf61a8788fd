"""Checkpoints that the families' six kinds do not cover, all in one engine: odd sizes, foreign backbones, prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_oracle import ADAPTER_MARGIN, LOGPROB_TOLERANCE, AdapterFiles, Oracle, logprob_distance
from engine_session import Answer, Row, answer_rows, random_prompt, shadow_engine
from reference_adapters import AdapterKind, build_adapter, build_base
from shadow_runtime import errors
from shadow_runtime.vllm_bridge.engine_args import NamedAdapter, plan_start

PROMPTS = tuple(random_prompt(length, seed=6000 + length) for length in (8, 100))
NUM_TOKENS = 6
PAPER_FILE = "shadow_adapter.safetensors"


def _rewrite(path: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    tensors = load_file(path / PAPER_FILE)
    save_file(dict(change(name, tensor) for name, tensor in tensors.items()), path / PAPER_FILE)


def _add_prefix(path: Path) -> None:
    _rewrite(path, lambda name, tensor: (f"module.peft_model.{name}", tensor))


def _to_bfloat16(path: Path) -> None:
    _rewrite(path, lambda name, tensor: (name, tensor.to(torch.bfloat16)))


@dataclass(frozen=True, slots=True)
class Variant:
    """An adapter to build, and what happens to its files before the engine sees them."""

    kind: AdapterKind
    options: dict[str, Any] = field(default_factory=dict)
    then: Callable[[Path], None] | None = None
    reference_reads_result: bool = True


VARIANTS = {
    "explicit-llama": Variant("paper_explicit", {"backbone": {"family": "llama"}}),
    "explicit-qwen2": Variant(
        "paper_explicit", {"backbone": {"family": "qwen2", "hidden_size": 64}}
    ),
    "explicit-gpt2": Variant(
        "paper_explicit", {"backbone": {"family": "gpt2", "hidden_size": 64, "num_layers": 1}}
    ),
    "explicit-shared-embeddings": Variant("paper_explicit", {"share_embeddings": True}),
    "explicit-projected-config": Variant("paper_explicit", {"projected_config": True}),
    "paper-few-heads": Variant(
        "paper_implicit", {"shadow_num_attention_heads": 2, "shadow_num_key_value_heads": 1}
    ),
    "paper-tiny": Variant(
        "paper_implicit",
        {
            "injection_hidden_size": 3,
            "gate_hidden_size": 5,
            "alpha": 0.7,
            "shadow_intermediate_size": 20,
        },
    ),
    "paper-prefixed": Variant("paper_implicit", then=_add_prefix, reference_reads_result=False),
    "paper-bfloat16": Variant("paper_implicit_two_layers", then=_to_bfloat16),
    "peft-first-layer": Variant("peft_partial", {"layers": [0]}),
    "peft-last-layer": Variant("peft_partial", {"layers": [3]}),
    "peft-two-layers": Variant(
        "peft_mirror", {"shadow_num_hidden_layers": 2, "r": 4, "update_hidden_size": 12}
    ),
    "peft-own-embeddings": Variant("peft_mirror", {"share_embeddings": False}),
}
ROWS = tuple(Row(name, prompt) for prompt in PROMPTS for name in (None, *VARIANTS))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base("qwen3", tmp_path_factory.mktemp("variants") / "base", seed=50)


@pytest.fixture(scope="module")
def oracle(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The reference; it reads the files as they were written where it cannot read what became of them."""
    files = {}
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        original = base.parent / "original" / name
        build_adapter(variant.kind, base, original, seed=seed, **variant.options)
        served = base.parent / name
        build_adapter(variant.kind, base, served, seed=seed, **variant.options)
        if variant.then is not None:
            variant.then(served)
        files[name] = AdapterFiles(
            variant.kind, served if variant.reference_reads_result else original
        )
    return Oracle(base, files)


@pytest.fixture(scope="module")
def llm(base: Path, oracle: Oracle) -> Iterator[Any]:
    adapters = {name: base.parent / name for name in oracle.adapters}
    with shadow_engine(base, adapters, max_resident_adapters=2, max_num_batched_tokens=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def answers(llm: Any) -> dict[Row, Answer]:
    return dict(zip(ROWS, answer_rows(llm, ROWS, NUM_TOKENS, prompt_logprobs=True), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_equals_the_reference(
    name: str, answers: dict[Row, Answer], oracle: Oracle, fidelity_report: dict[str, Any]
) -> None:
    deviations = []
    for prompt in PROMPTS:
        row = Row(name, prompt)
        oracle.check_tokens(row, answers[row])
        deviations.append(oracle.deviation(row, answers[row]).worst)
        assert logprob_distance(answers[row], answers[Row(None, prompt)]) > ADAPTER_MARGIN
    fidelity_report[f"variants/{name}"] = max(deviations)
    assert max(deviations) <= LOGPROB_TOLERANCE


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "head-size": ({"head_dim": 64}, "head_dim is 64", "head sizes"),
    "logit-cap": ({"family": "gemma2"}, "norm is gemma_rms", "logit caps"),
}


@pytest.mark.parametrize("difference", REFUSED)
def test_a_backbone_without_a_slot_class_is_refused(
    difference: str, llm: Any, base: Path, tmp_path: Path, answers: dict[Row, Answer]
) -> None:
    backbone, reason, _ = REFUSED[difference]
    path = build_adapter("paper_explicit", base, tmp_path / "adapter", backbone=backbone)
    with pytest.raises(errors.AdapterLimitError, match=f"fits no slot class .*{reason}"):
        llm.load_adapter("other", path)
    row = Row("explicit-llama", PROMPTS[0])
    (again,) = answer_rows(llm, [row], NUM_TOKENS)
    assert again.tokens == answers[row].tokens


@pytest.mark.parametrize("difference", REFUSED)
def test_geometries_that_cannot_share_one_cache_are_refused_at_start(
    difference: str, base: Path, oracle: Oracle, tmp_path: Path
) -> None:
    backbone, _, reason = REFUSED[difference]
    path = build_adapter("paper_explicit", base, tmp_path / "adapter", backbone=backbone)
    named = [NamedAdapter("a", base.parent / "paper-tiny"), NamedAdapter("b", path)]
    with pytest.raises(errors.ConfigError, match=f"cannot share one KV cache: .*{reason}"):
        plan_start(str(base), named)
