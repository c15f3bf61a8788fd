"""The bases and adapters that engine tests play with: one base of a family, adapters of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_oracle import AdapterFiles, Oracle
from reference_adapters import KINDS, AdapterKind, build_adapter, build_base

BASE_OPTIONS: dict[str, dict[str, int]] = {
    # Half of the prompts reach past the window.
    "mistral": {"sliding_window": 40},
}
"""Fields of a family's base config, and of its explicit backbones', that differ from the builder's default."""

ALPHA = {"gemma2": 2.0}
"""Strength of a family's adapters; at the builder's 1.0 a Gemma 2 of this size often still says what its base says."""


@dataclass(frozen=True, slots=True)
class Cast:
    """A base checkpoint, named adapters for it, and the oracle that knows what they answer."""

    base: Path
    adapters: dict[str, Path]
    oracle: Oracle


def build_cast(
    family: str,
    directory: Path,
    *,
    kinds: Sequence[AdapterKind] = KINDS,
    per_kind: int = 1,
    seed: int = 100,
) -> Cast:
    """Write a random base and `per_kind` adapters of each of `kinds`, named after their kind."""
    base = build_base(family, directory / "base", seed=seed, **BASE_OPTIONS.get(family, {}))
    files = {}
    for number in range(per_kind):
        for index, kind in enumerate(kinds):
            name = kind if per_kind == 1 else f"{kind}_{number}"
            adapter_seed = seed + 1 + index + number * len(kinds)
            options = _adapter_options(family, kind)
            path = build_adapter(kind, base, directory / name, seed=adapter_seed, **options)
            files[name] = AdapterFiles(kind, path)
    return Cast(base, {name: f.path for name, f in files.items()}, Oracle(base, files))


def _adapter_options(family: str, kind: AdapterKind) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if family in ALPHA:
        options["alpha" if kind.startswith("paper") else "shadow_alpha"] = ALPHA[family]
    if kind == "paper_explicit":
        # One KV cache holds all backbones of an engine, so they share the base's sliding window.
        options["backbone"] = dict(BASE_OPTIONS.get(family, {}))
    return options


def write_tokenizer(base: Path, *, vocab_size: int = 256) -> None:
    """Give a base a tokenizer of one word per token id: `w0 w1 ...`, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(base)
