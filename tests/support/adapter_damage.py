"""Ways to damage a copy of an adapter: its JSON, its tensors, or the bytes of its safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], None]


def tensor_file(adapter: Path) -> Path:
    """Return the adapter's file of tensors."""
    paper = adapter / "shadow_adapter.safetensors"
    return paper if paper.exists() else adapter / "adapter_model.safetensors"


def config_file(adapter: Path) -> Path:
    """Return the adapter's own config file."""
    paper = adapter / "shadow_config.json"
    return paper if paper.exists() else adapter / "adapter_config.json"


def set_fields(**changes: Any) -> Damage:
    """Change fields of the adapter's config."""
    return lambda adapter: edit_json(config_file(adapter), changes)


def set_backbone(**changes: Any) -> Damage:
    """Change fields of config.json."""
    return lambda adapter: edit_json(adapter / "config.json", changes)


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Update the object in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_config(text: str | bytes) -> Damage:
    """Replace the adapter's config."""
    data = text.encode() if isinstance(text, str) else text
    return lambda adapter: config_file(adapter).write_bytes(data) and None


def set_tensors(edit: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    """Apply `edit` to the adapter's tensors."""

    def damage(adapter: Path) -> None:
        tensors = load_file(tensor_file(adapter))
        edit(tensors)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, tensor_file(adapter))

    return damage


def set_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Replace the tensor whose key ends with `name`."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in sorted(tensors) if key.endswith(name))
        tensors[key] = change(tensors[key].clone())

    return set_tensors(edit)


def poison(name: str, value: float) -> Damage:
    """Set the last element of the tensor whose key ends with `name`."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return set_tensor(name, change)


def write_bytes(change: Callable[[bytes], bytes]) -> Damage:
    """Replace the bytes of the tensor file."""

    def damage(adapter: Path) -> None:
        path = tensor_file(adapter)
        path.write_bytes(change(path.read_bytes()))

    return damage


def set_header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Replace the safetensors header by what `change` returns (an object, or text)."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = change(json.loads(data[8 : 8 + length]))
        text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return write_bytes(rewrite)


def set_entry(**changes: Any) -> Damage:
    """Change the header entry of the first tensor in the file."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        entries = {key: value for key, value in header.items() if key != "__metadata__"}
        first = min(entries, key=lambda key: entries[key]["data_offsets"])
        entries[first] = entries[first] | changes
        return entries

    return set_header(change)
