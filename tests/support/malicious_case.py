"""A hostile adapter: a sound one of a tiny base, damaged in one way, and the error that refuses it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from adapter_damage import (
    Damage,
    set_tensors,
    tensor_file,
)
from reference_adapters import AdapterKind, build_adapter, build_base, copy_adapter
from shadow_runtime.artifact import base_geometry
from shadow_runtime.errors import (
    AdapterError,
)
from shadow_runtime.types import BaseGeometry

KINDS: tuple[AdapterKind, ...] = (
    "paper_implicit",
    "paper_explicit",
    "peft_mirror",
    "peft_explicit",
)
"""Kinds of the sound adapters."""

PAPER, EXPLICIT, PEFT, PEFT_EXPLICIT = KINDS


class Case(NamedTuple):
    """One hostile adapter.

    Attributes:
        kind: the sound adapter that it is made from.
        damage: what is done to a copy of it.
        error: the class that it is refused with; `error.code` is the code on the wire.
        message: pattern of the message.
    """

    kind: str
    damage: Damage
    error: type[AdapterError]
    message: str

    def build(self, originals: Path, directory: Path) -> Path:
        """Write the adapter to the new `directory`; `originals` is what `build_originals` made."""
        copy_adapter(originals / self.kind, directory)
        self.damage(directory)
        return directory


def build_originals(root: Path) -> BaseGeometry:
    """Write a tiny Llama base and a sound adapter of each of `KINDS` below `root`; return the base's shape."""
    build_base("llama", root / "base", seed=3)
    for kind in KINDS:
        build_adapter(kind, root / "base", root / kind, seed=5)
    return base_geometry(AutoConfig.from_pretrained(root / "base"))


def replace_by(make: Callable[[Path], Any], find: Callable[[Path], Path] = tensor_file) -> Damage:
    """Replace a file of the adapter by whatever `make` puts at its path."""

    def damage(adapter: Path) -> None:
        path = find(adapter)
        path.unlink()
        make(path)

    return damage


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def link_out(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_text("{}")
    path.symlink_to(target)


def many_tensors(number: int) -> str:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return json.dumps({str(index): entry for index in range(number)})


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def duplicate(tensors: dict[str, torch.Tensor]) -> None:
    for key in list(tensors)[:1]:
        tensors[f"module.{key}"] = tensors[key].clone()


def rename(old: str, new: str) -> Damage:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return set_tensors(edit)


def remove(name: str) -> Damage:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if name in key]:
            del tensors[key]

    return set_tensors(edit)


def add(name: str) -> Damage:
    return set_tensors(lambda tensors: tensors.update({name: torch.zeros(2)}))


def backbone_file(adapter: Path) -> Path:
    return adapter / "config.json"


def trained_head(adapter: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(4)}, adapter / "shadow_modules.safetensors")


DEEP = "[" * 100_000 + "]" * 100_000
ALPHA = '{"alpha": %s}'
DOWNS = "injection_downs"

TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
