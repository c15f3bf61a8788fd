"""What a server can hold: slot classes and limits, fixed at start.

Runs in: API process | engine core | GPU worker. Imports neither torch nor vllm.

The config travels to every worker in vLLM's `additional_config["shadow"]`, which vLLM hashes into its compile-cache
keys: a plain engine, or one of another shape or version of this plugin, never loads our compiled graphs.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

from shadow_runtime import __version__
from shadow_runtime.errors import ConfigError
from shadow_runtime.types import AdapterLimits, BackboneSpec

OPERATOR_ABI = 2
"""Raised whenever an operator's schema, a stack's layout or what compiled graphs hold of ours changes; part of vLLM's
compile-cache key."""

MAX_RESIDENT_ADAPTERS = 1024


@dataclass(frozen=True, slots=True)
class SlotClass:
    """Slots of one backbone geometry; an adapter fits when its backbone pads exactly to `spec`.

    Attributes:
        name: label in logs and errors.
        spec: the largest backbone that the class holds.
        num_slots: adapters of this class that can be in device memory at once.
    """

    name: str
    spec: BackboneSpec
    num_slots: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_slots <= MAX_RESIDENT_ADAPTERS:
            raise ConfigError(
                f"slot class {self.name!r}: num_slots must be 1 to {MAX_RESIDENT_ADAPTERS}, got {self.num_slots}"
            )


@dataclass(frozen=True, slots=True)
class ShadowConfig:
    """Start-time settings of the runtime.

    Attributes:
        slot_classes: at least one; all of them share one KV-cache geometry and one slot numbering (class 0 first).
        max_injection_rank: widest injection bottleneck (R) that a slot holds. Range 1 to 64.
        max_gate_size: widest gate and transform bottleneck (G) that a slot holds. Range 1 to 64.
        max_host_adapters: adapters kept in host memory, resident ones included.
        max_pinned_adapters: slots of every class beyond those that a step may mix, so that pinned adapters never take
            a slot from one that is admitted. Range 0 or more.
        max_adapter_wait_seconds: how long a request waits for its adapter's turn in a slot while slots turn over.
        adapter_quantum_tokens: tokens that an adapter is served before another that waits for a slot gets its turn,
            times the tenant's weight.
        has_server: a server runs beside the engine, whose processes then leave it the processors that they do not
            compute on.
    """

    slot_classes: tuple[SlotClass, ...]
    max_injection_rank: int = 16
    max_gate_size: int = 16
    max_host_adapters: int = 256
    max_pinned_adapters: int = 0
    max_adapter_wait_seconds: float = 5.0
    adapter_quantum_tokens: int = 4096
    limits: AdapterLimits = field(default_factory=AdapterLimits)
    has_server: bool = False

    def __post_init__(self) -> None:
        if not self.slot_classes:
            raise ConfigError("at least one slot class is needed")
        for name in ("max_injection_rank", "max_gate_size"):
            value = getattr(self, name)
            if not 1 <= value <= 64:
                raise ConfigError(f"{name} must be 1 to 64, got {value}")
        if not 0 <= self.max_pinned_adapters < min(c.num_slots for c in self.slot_classes):
            raise ConfigError(
                f"max_pinned_adapters must leave a slot in every class, got {self.max_pinned_adapters}"
            )
        if not self.max_adapter_wait_seconds > 0 or self.adapter_quantum_tokens < 1:
            raise ConfigError(
                "max_adapter_wait_seconds and adapter_quantum_tokens must be positive"
            )
        if self.max_host_adapters < self.max_resident_adapters + self.max_pinned_adapters:
            raise ConfigError(
                f"max_host_adapters ({self.max_host_adapters}) must be at least the "
                f"{self.max_resident_adapters + self.max_pinned_adapters} resident adapters of one class"
            )
        _check_shared_cache(self.slot_classes)

    @property
    def num_slots(self) -> int:
        """Slots over all classes."""
        return sum(c.num_slots for c in self.slot_classes)

    @property
    def max_resident_adapters(self) -> int:
        """Distinct adapters that one step may mix: any such mix fits, whatever classes and pins there are."""
        return min(c.num_slots for c in self.slot_classes) - self.max_pinned_adapters

    def first_slot(self, class_index: int) -> int:
        """Return the first slot number of a class; its slots are consecutive."""
        return sum(c.num_slots for c in self.slot_classes[:class_index])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form that travels in `additional_config["shadow"]`."""
        data = dataclasses.asdict(self)
        data["version"] = f"{__version__}+abi{OPERATOR_ABI}"
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ShadowConfig:
        """Rebuild a config from `to_dict` output; raises ConfigError when another plugin version wrote it."""
        fields = dict(data)
        version = fields.pop("version", None)
        if version != f"{__version__}+abi{OPERATOR_ABI}":
            raise ConfigError(
                f"additional_config['shadow'] was made by shadow_runtime {version}, this is {__version__}"
            )
        fields["slot_classes"] = tuple(
            SlotClass(c["name"], BackboneSpec.from_dict(c["spec"]), c["num_slots"])
            for c in fields["slot_classes"]
        )
        fields["limits"] = AdapterLimits(**fields["limits"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """The KV cache that all slot classes share.

    Attributes:
        num_layers: shadow attention layers.
        num_kv_heads, heads_per_kv_head, head_dim: of every layer, before tensor parallelism.
        windows: sliding window of each layer, None for full attention.
        logit_softcap: tanh cap of every layer, None without.
    """

    num_layers: int
    num_kv_heads: int
    heads_per_kv_head: int
    head_dim: int
    windows: tuple[int | None, ...]
    logit_softcap: float | None

    @property
    def num_heads(self) -> int:
        """Query heads of every layer."""
        return self.num_kv_heads * self.heads_per_kv_head

    @classmethod
    def of(cls, classes: tuple[SlotClass, ...]) -> CacheGeometry:
        """Return the smallest geometry that holds every class."""
        specs = [c.spec for c in classes]
        deepest = max(specs, key=lambda s: s.num_layers)
        return cls(
            num_layers=deepest.num_layers,
            num_kv_heads=max(s.num_kv_heads for s in specs),
            heads_per_kv_head=max(s.num_heads // s.num_kv_heads for s in specs),
            head_dim=deepest.head_dim,
            windows=deepest.windows,
            logit_softcap=deepest.logit_softcap,
        )


def find_cache_conflict(first: BackboneSpec, second: BackboneSpec) -> str | None:
    """Return why two backbones cannot share one KV cache, or None when they can."""
    if first.head_dim != second.head_dim:
        return f"head sizes {first.head_dim} and {second.head_dim} differ"
    if first.logit_softcap != second.logit_softcap:
        return f"attention logit caps {first.logit_softcap} and {second.logit_softcap} differ"
    for layer, (a, b) in enumerate(zip(first.windows, second.windows, strict=False)):
        if a != b:
            return f"sliding windows {a} and {b} of shadow layer {layer} differ"
    return None


def _check_shared_cache(classes: tuple[SlotClass, ...]) -> None:
    # Every pair: a shallow class agrees with two deeper ones that differ in a layer it lacks.
    for first, second in itertools.combinations(classes, 2):
        conflict = find_cache_conflict(first.spec, second.spec)
        if conflict is not None:
            raise ConfigError(
                f"slot classes {first.name!r} and {second.name!r} cannot share one KV cache: {conflict}; "
                "serve them from two servers"
            )
