"""Slot classes for a server: from what the operator asks for and from the adapters named at start.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shadow_runtime.artifact.backbone_spec import FAMILIES, field_name, spec_from_config
from shadow_runtime.config import ShadowConfig, SlotClass
from shadow_runtime.errors import AdapterConfigError, ConfigError
from shadow_runtime.slots.layout import widen
from shadow_runtime.types import AdapterManifest, BackboneSpec, BaseGeometry

DEFAULT_INJECTION_RANK = 16
DEFAULT_GATE_SIZE = 10
DEFAULT_INTERMEDIATE_SIZE = 256


@dataclass(frozen=True, slots=True)
class SlotOptions:
    """What the operator may set; None means derived from the adapters named at start, or the paper's configuration.

    Attributes:
        shadow_layers: depth of the implicit slot class; default 1.
        shadow_intermediate_size: MLP width of the implicit slot class; default 256.
        shadow_heads: query heads of the implicit slot class; default the base's.
        max_injection_rank, max_gate_size: widest bottlenecks; defaults 16 and 10.
        max_resident_adapters: adapters that one step may mix.
        max_host_adapters: adapters kept in host memory.
        max_pinned_adapters: slots of every class beyond max_resident_adapters, so that pinned adapters take none from
            a step; while nothing is pinned, more adapters are resident.
        max_adapter_wait_seconds, adapter_quantum_tokens: how slots are shared; see `ShadowConfig`.
    """

    shadow_layers: int | None = None
    shadow_intermediate_size: int | None = None
    shadow_heads: int | None = None
    max_injection_rank: int | None = None
    max_gate_size: int | None = None
    max_resident_adapters: int = 8
    max_host_adapters: int = 256
    max_pinned_adapters: int = 2
    max_adapter_wait_seconds: float = 5.0
    adapter_quantum_tokens: int = 4096

    @property
    def names_implicit_class(self) -> bool:
        """Whether a size of the implicit slot class is set."""
        return any(
            v is not None
            for v in (self.shadow_layers, self.shadow_intermediate_size, self.shadow_heads)
        )


DEFAULT_OPTIONS = SlotOptions()


def derive_config(
    base: BaseGeometry, manifests: Sequence[AdapterManifest], options: SlotOptions = DEFAULT_OPTIONS
) -> ShadowConfig:
    """Return the smallest config that holds every named adapter and whatever the options ask for.

    Raises:
        ConfigError: two backbones cannot share one KV cache, or a size contradicts the base.
    """
    specs: list[BackboneSpec] = []
    if options.names_implicit_class or not manifests:
        specs.append(_implicit(base, options))
    for manifest in manifests:
        _place(specs, manifest.backbone)
    specs = [_match_hybrid_base(spec, base) for spec in specs]
    slots = options.max_resident_adapters + options.max_pinned_adapters
    return ShadowConfig(
        slot_classes=tuple(SlotClass(_label(s, i), s, slots) for i, s in enumerate(specs)),
        max_injection_rank=_chosen(
            options.max_injection_rank,
            max((m.injection_rank for m in manifests), default=DEFAULT_INJECTION_RANK),
        ),
        max_gate_size=_chosen(
            options.max_gate_size, max((m.gate_size for m in manifests), default=DEFAULT_GATE_SIZE)
        ),
        max_host_adapters=max(options.max_host_adapters, slots),
        max_pinned_adapters=options.max_pinned_adapters,
        max_adapter_wait_seconds=options.max_adapter_wait_seconds,
        adapter_quantum_tokens=options.adapter_quantum_tokens,
    )


def _chosen(option: int | None, default: int) -> int:
    # Zero is a wrong wish, which the config refuses, not the absence of one.
    return default if option is None else option


def _implicit(base: BaseGeometry, options: SlotOptions) -> BackboneSpec:
    family = FAMILIES[base.family]
    sizes = {
        "num_hidden_layers": _chosen(options.shadow_layers, 1),
        "intermediate_size": _chosen(options.shadow_intermediate_size, DEFAULT_INTERMEDIATE_SIZE),
    }
    if options.shadow_heads is not None:
        sizes["num_attention_heads"] = options.shadow_heads
    fields = base.hf_config | {field_name(family, name): size for name, size in sizes.items()}
    try:
        return spec_from_config(
            fields, vocab_size=0, has_projection=False, name="the implicit slot class"
        )
    except AdapterConfigError as error:
        # The operator's sizes are at fault, no adapter is.
        raise ConfigError(str(error)) from None


def _place(specs: list[BackboneSpec], spec: BackboneSpec) -> None:
    for index, known in enumerate(specs):
        wider = widen(known, spec)
        if wider is not None:
            specs[index] = wider
            return
    specs.append(spec)


def _match_hybrid_base(spec: BackboneSpec, base: BaseGeometry) -> BackboneSpec:
    """Give the backbone the KV heads of a base that mixes windows: vLLM groups such layers by equal shape."""
    config = base.hf_config
    layer_types = set(config.get("layer_types") or ())
    if len(layer_types) < 2:
        return spec
    # Not every such family states its head size (Qwen2 does not).
    head_dim = config.get("head_dim") or base.hidden_size // config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    if spec.head_dim != head_dim or spec.num_kv_heads > kv_heads:
        raise ConfigError(
            "a base that mixes sliding and full attention needs shadow layers of its own cache shape "
            f"(head size {head_dim}, at most {kv_heads} KV heads), got head size {spec.head_dim} and "
            f"{spec.num_kv_heads} KV heads"
        )
    group = spec.num_heads // spec.num_kv_heads
    return replace(spec, num_kv_heads=kv_heads, num_heads=kv_heads * group)


def _label(spec: BackboneSpec, index: int) -> str:
    own = "own-embeddings-" if spec.vocab_size else ""
    return f"{index}:{spec.family}-{own}{spec.num_layers}x{spec.hidden_size}"
