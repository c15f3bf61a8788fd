"""What a dialect finds out from configs and headers, before any tensor data is read.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from shadow_runtime.artifact.tensor_file import TensorEntry
from shadow_runtime.artifact.tensor_rule import TensorRule
from shadow_runtime.errors import AdapterLimitError, AdapterMismatchError, AdapterTensorError
from shadow_runtime.quote import quote, quote_first
from shadow_runtime.types import (
    Activation,
    AdapterFormat,
    AdapterLimits,
    BackboneSpec,
    BaseGeometry,
)

# A vocabulary may be padded or have tokens that the base lacks; beyond this its rows are dead weight.
_SPARE_ROWS = 1 << 16

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """How to turn one checkpoint into canonical tensors.

    Attributes:
        format, injection_rank, gate_size, scale, activation, has_norm, has_update_bias, injects, updates,
            backbone, notes: as in `AdapterManifest`.
        entries: header entries by key; keys are as in the file's dialect, without wrapper prefixes.
        file_keys: key to the name that the file has for it.
        boundary_shapes: shapes of every boundary tensor, used or dead.
        build_boundary: makes the canonical boundary tensors from all tensors.
        rules: of the backbone's tensors.
    """

    format: AdapterFormat
    injection_rank: int
    gate_size: int
    scale: float
    activation: Activation
    has_norm: bool
    has_update_bias: bool
    injects: tuple[bool, ...]
    updates: tuple[bool, ...]
    backbone: BackboneSpec
    entries: Mapping[str, TensorEntry]
    file_keys: Mapping[str, str]
    boundary_shapes: Mapping[str, tuple[int, ...]]
    build_boundary: Callable[[Tensors], dict[str, torch.Tensor]]
    rules: tuple[TensorRule, ...]
    notes: tuple[str, ...]

    def check(self) -> None:
        """Raise `AdapterTensorError` unless the file holds exactly the expected keys and shapes."""
        expected = dict(self.boundary_shapes) | {rule.key: rule.shape for rule in self.rules}
        missing = expected.keys() - self.entries.keys()
        if missing:
            raise AdapterTensorError(
                f"the checkpoint lacks {len(missing)} expected tensors: {quote_first(missing)}"
            )
        unknown = self.entries.keys() - expected.keys()
        if unknown:
            raise AdapterTensorError(
                f"the checkpoint has {len(unknown)} unknown tensors: {quote_first(unknown)}"
            )
        for key, shape in expected.items():
            check_shape(key, self.entries[key].shape, shape)

    def build(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Return the canonical tensors."""
        canonical = self.build_boundary(tensors)
        for rule in self.rules:
            canonical |= rule.apply(tensors[rule.key])
        return canonical


def check_shape(key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `AdapterTensorError` unless the two are equal."""
    if shape != expected:
        raise AdapterTensorError(
            f"tensor {quote(key)} has shape {list(shape)}, expected {list(expected)}"
        )


def get_entry(entries: Mapping[str, TensorEntry], key: str, num_dimensions: int) -> TensorEntry:
    """Return the entry of a tensor whose shape tells a size.

    Raises:
        AdapterTensorError: it is missing or has another number of dimensions.
    """
    if key not in entries:
        raise AdapterTensorError(f"the checkpoint lacks tensor {quote(key)}")
    entry = entries[key]
    if len(entry.shape) != num_dimensions:
        raise AdapterTensorError(
            f"tensor {quote(key)} has {len(entry.shape)} dimensions, expected {num_dimensions}"
        )
    return entry


def check_hidden_size(hidden_size: int, base: BaseGeometry) -> None:
    """Raise `AdapterMismatchError` unless the adapter's base had the width of this base."""
    if hidden_size != base.hidden_size:
        raise AdapterMismatchError(
            f"the adapter is for a base of hidden size {hidden_size}, this base has {base.hidden_size}"
        )


def check_widths(injection_rank: int, gate_size: int, limits: AdapterLimits) -> None:
    """Raise `AdapterLimitError` where the boundary is wider than the server allows."""
    _check_limit("injection rank", injection_rank, limits.max_injection_rank)
    _check_limit("gate size", gate_size, limits.max_gate_size)


def check_backbone(spec: BackboneSpec, base: BaseGeometry, limits: AdapterLimits) -> None:
    """Raise unless the backbone is within limits and can be fed and read by this base.

    Raises:
        AdapterLimitError: over a server limit.
        AdapterMismatchError: its own embedding has fewer rows than the base's vocabulary, or its width does
            not meet the base's where nothing projects.
    """
    _check_limit("number of shadow layers", spec.num_layers, limits.max_shadow_layers)
    _check_limit("shadow MLP width", spec.intermediate_size, limits.max_intermediate_size)
    _check_limit("number of shadow heads", spec.num_heads, limits.max_heads)
    if 0 < spec.vocab_size < base.vocab_size:
        raise AdapterMismatchError(
            f"the shadow backbone's embedding has {spec.vocab_size} rows, the base's vocabulary has"
            f" {base.vocab_size}"
        )
    _check_limit("number of embedding rows", spec.vocab_size, 2 * base.vocab_size + _SPARE_ROWS)
    needs_base_width = spec.vocab_size == 0 or not spec.has_projection
    if needs_base_width and spec.hidden_size != base.hidden_size:
        raise AdapterMismatchError(
            f"the shadow backbone has width {spec.hidden_size} and is tied to the base's"
            f" {base.hidden_size} without own embeddings and projection"
        )


def _check_limit(what: str, value: int, limit: int) -> None:
    if value > limit:
        raise AdapterLimitError(f"the adapter's {what} is {value}, the server allows {limit}")
