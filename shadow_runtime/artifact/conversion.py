"""From one checkpoint format to the other, where the two can compute the same.

Runs in: the command's own process. CPU tensors only.

The formats differ in what the shadow state goes through between two layers: SiLU behind one LayerNorm without biases
(paper), exact GELU with biases and no norm (peft). No weights of the one make the other, so an adapter whose state is
updated between two corrections stays in its format. What is left converts exactly: an adapter that corrects one layer,
whose updates no correction reads, and one whose updates leave the state as it is. A correction that is zero is no
correction, and a gate that is closed is no update: so the formats spell for each other what they cannot leave out.

Within its own format a checkpoint is written anew as the package itself would, without a trainer's prefixes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from shadow_runtime.artifact import dialect_paper, dialect_peft, writer_paper, writer_peft
from shadow_runtime.artifact.backbone_config import CONFIG_FILE
from shadow_runtime.artifact.canonical import CanonicalAdapter
from shadow_runtime.artifact.closed_gate import is_closed
from shadow_runtime.artifact.json_file import read_json_file
from shadow_runtime.artifact.reader import load_adapter
from shadow_runtime.errors import AdapterError, AdapterFileError
from shadow_runtime.store.directory import AdapterDirectory, open_trusted_file
from shadow_runtime.types import AdapterFormat, AdapterLimits, AdapterManifest, BaseGeometry

_CONFIG_FILES: dict[AdapterFormat, str] = {
    "paper": dialect_paper.CONFIG_FILE,
    "peft": dialect_peft.CONFIG_FILE,
}
_TENSOR_FILES: dict[AdapterFormat, str] = {
    "paper": writer_paper.TENSOR_FILE,
    "peft": writer_peft.TENSOR_FILE,
}


class NotConvertibleError(AdapterError):
    """The other format cannot compute what the adapter does; the message names every reason."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was read and what was written, both as a server would load them.

    Attributes:
        source, target: manifests. Within one format their digests are equal. Across formats they are not, as the digest
            is over the declared maths too; from peft to paper and back it is the first one again, from paper to peft
            and back only the norm is lost that nothing read.
    """

    source: AdapterManifest
    target: AdapterManifest


def convert_adapter(
    source: Path,
    target: Path,
    base: BaseGeometry,
    target_format: AdapterFormat,
    *,
    backbone_config: Path | None = None,
    limits: AdapterLimits | None = None,
) -> Conversion:
    """Write the adapter at `source` to the new directory `target`, and read it again to see that it is the same.

    Args:
        source: directory of either format.
        target: must not exist; it is there whole, or not at all.
        base: shape of the base model that the adapter is for.
        target_format: its own, or the other one.
        backbone_config: config of an explicit shadow backbone that lies elsewhere; it is copied.
        limits: as of `load_adapter`.

    Raises:
        AdapterError: the source is not valid for the base.
        NotConvertibleError: the format cannot compute it.
        AdapterFileError: `target` exists, or cannot be written.
    """
    limits = limits or AdapterLimits()
    adapter = load_adapter(source, base, limits, backbone_config=backbone_config)
    configs = _read_configs(source, adapter.manifest.format, backbone_config)
    if adapter.manifest.format != target_format:
        _refuse(find_obstacles(adapter, target_format))
    files = _write_fields(adapter, base, target_format, configs)
    if target.exists():
        raise AdapterFileError(f"{str(target)!r} exists already")
    with tempfile.TemporaryDirectory(dir=_parent(target), prefix=".convert-") as made:
        _write(Path(made), files, target_format)
        written = _read_again(Path(made), base, limits)
        _check_same(adapter, written)
        shutil.copytree(made, target)
    return Conversion(adapter.manifest, written.manifest)


def find_obstacles(adapter: CanonicalAdapter, target_format: AdapterFormat) -> list[str]:
    """Return why an adapter of the other format cannot be written in `target_format`; empty when it can."""
    live = find_live_updates(adapter)
    obstacles: list[str] = []
    if not corrected_layers(adapter):
        obstacles.append("it corrects no layer")
    if live:
        own, other = _MATHS[adapter.manifest.format], _MATHS[target_format]
        obstacles.append(
            f"its shadow state is updated in front of {len(live)} layers ({live[0]} to {live[-1]}) through {own},"
            f" where the {target_format} format has {other}"
        )
    if target_format == "paper" and 0 in corrected_layers(adapter):
        obstacles.append("it corrects the first layer, which the paper format leaves alone")
    if target_format == "paper":
        return obstacles + writer_paper.backbone_obstacles(adapter.manifest)
    return obstacles + writer_peft.backbone_obstacles(adapter.manifest)


_MATHS = {"paper": "SiLU behind a LayerNorm, without biases", "peft": "exact GELU with biases"}


def corrected_layers(adapter: CanonicalAdapter) -> list[int]:
    """Return the layers with a correction that is not zero."""
    down, up = adapter.tensors["boundary.down"], adapter.tensors["boundary.up"]
    injects = adapter.manifest.injects
    return [i for i, has in enumerate(injects) if has and bool(down[i].any() and up[i].any())]


def _updated_layers(adapter: CanonicalAdapter) -> list[int]:
    """Return the layers in front of which the state changes and is read at or after."""
    last = max(corrected_layers(adapter), default=-1)
    return [i for i, is_updated in enumerate(adapter.manifest.updates) if is_updated and i <= last]


def _refuse(obstacles: list[str]) -> None:
    if obstacles:
        raise NotConvertibleError(f"the adapter cannot be converted: {'; '.join(obstacles)}")


def _read_configs(
    source: Path, own_format: AdapterFormat, backbone_config: Path | None
) -> dict[str, dict[str, Any]]:
    name = _CONFIG_FILES[own_format]
    with AdapterDirectory(source) as directory:
        configs = {name: read_json_file(directory.open_file(name), name)}
        if backbone_config is None and directory.has(CONFIG_FILE):
            configs[CONFIG_FILE] = read_json_file(directory.open_file(CONFIG_FILE), CONFIG_FILE)
    if backbone_config is not None:
        file = backbone_config / CONFIG_FILE if backbone_config.is_dir() else backbone_config
        configs[CONFIG_FILE] = read_json_file(open_trusted_file(file), file.name)
    return configs


@dataclass(frozen=True, slots=True)
class _Files:
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, torch.Tensor]


def _write_fields(
    adapter: CanonicalAdapter,
    base: BaseGeometry,
    target_format: AdapterFormat,
    configs: dict[str, dict[str, Any]],
) -> _Files:
    own_format = adapter.manifest.format
    layers = corrected_layers(adapter)
    if own_format == target_format:
        layers = [layer for layer, has in enumerate(adapter.manifest.injects) if has]
        config = configs[_CONFIG_FILES[own_format]]
    elif target_format == "paper":
        config = writer_paper.make_config(adapter.manifest)
    else:
        config = writer_peft.make_config(adapter.manifest, base, layers)
    if target_format == "paper":
        tensors = writer_paper.make_tensors(adapter, base)
    else:
        tensors = writer_peft.make_tensors(adapter, base, layers)
    beside = {name: value for name, value in configs.items() if name == CONFIG_FILE}
    return _Files({_CONFIG_FILES[target_format]: config} | beside, tensors)


def _write(folder: Path, files: _Files, target_format: AdapterFormat) -> None:
    for name, fields in files.configs.items():
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    stored = {name: tensor.contiguous() for name, tensor in files.tensors.items()}
    save_file(stored, folder / _TENSOR_FILES[target_format], {"format": "pt"})


def _read_again(made: Path, base: BaseGeometry, limits: AdapterLimits) -> CanonicalAdapter:
    try:
        return load_adapter(made, base, limits)
    except AdapterError as error:
        raise NotConvertibleError(f"{_NO_FIELDS}: {error}") from error


_NO_FIELDS = "the other format has no fields for this adapter's shadow backbone"


def _check_same(before: CanonicalAdapter, after: CanonicalAdapter) -> None:
    """Raise `NotConvertibleError` unless the two compute the same; nothing was kept then."""
    old, new = before.manifest, after.manifest
    if old.format == new.format:
        if old.digest != new.digest:
            raise NotConvertibleError("the adapter reads otherwise once it is written anew")
        return
    kept = [name for name in before.tensors if name.startswith("backbone.")]
    is_same = (
        (old.scale, old.backbone) == (new.scale, new.backbone)
        and _corrections(before) == _corrections(after)
        and all(_is_equal(before.tensors[name], after.tensors[name]) for name in kept)
        and not find_live_updates(after)
    )
    if not is_same:
        raise NotConvertibleError(_NO_FIELDS)


def find_live_updates(adapter: CanonicalAdapter) -> list[int]:
    """Return the layers in front of which the state is changed to any effect."""
    return [layer for layer in _updated_layers(adapter) if not is_closed(adapter, layer)]


def _corrections(adapter: CanonicalAdapter) -> list[tuple[int, list[Any], list[Any]]]:
    down, up = adapter.tensors["boundary.down"], adapter.tensors["boundary.up"]
    return [(i, down[i].tolist(), up[i].tolist()) for i in corrected_layers(adapter)]


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _parent(target: Path) -> str:
    parent = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(parent):
        raise AdapterFileError(f"there is no folder {parent!r} to write to")
    return parent
