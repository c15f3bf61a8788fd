"""The vLLM engine arguments that switch the shadow path on.

Runs in: API process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.transformers_utils.config import get_config

from shadow_runtime.artifact import base_geometry, load_adapter
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import ConfigError
from shadow_runtime.slots.derive import DEFAULT_OPTIONS, SlotOptions, derive_config
from shadow_runtime.slots.layout import ShardPlan, slot_bytes
from shadow_runtime.types import AdapterManifest, BaseGeometry
from shadow_runtime.vllm_bridge.architecture import check_architectures
from shadow_runtime.vllm_bridge.version import check_version

logger = logging.getLogger(__name__)

WORKER_CLASS = "shadow_runtime.vllm_bridge.worker.ShadowWorker"
SCHEDULER_FACTORY = "shadow_runtime.vllm_bridge.scheduler.make_scheduler"


_REFUSED_ARGUMENTS = {
    "lora_modules": "LoRA modules are not served beside ShadowPEFT adapters; name adapters with --adapter",
    "speculative_config": "a draft model of a supported architecture would get a shadow path of its own",
    "enable_prompt_embeds": "a shadow backbone with its own embeddings needs token ids",
    # The server and its workers would derive different backbones, and so digests, from two readings of the base.
    "hf_overrides": "adapters are read against the base's config.json; change it there",
    "hf_config_path": "adapters are read against the base's config.json; change it there",
    "enable_dbo": "the step's tokens are grouped by adapter once, not per micro-batch",
}


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter named at start.

    Attributes:
        name: its name in requests.
        path: directory of its checkpoint.
        backbone_config: config of an explicit backbone, or None.
    """

    name: str
    path: Path
    backbone_config: Path | None = None


@dataclass(frozen=True, slots=True)
class StartPlan:
    """What is decided before the engine starts.

    Attributes:
        base: the base model's geometry.
        config: slot classes and limits.
        manifests: of the adapters named at start, by name.
    """

    base: BaseGeometry
    config: ShadowConfig
    manifests: dict[str, AdapterManifest]


def plan_start(
    model: str,
    adapters: Sequence[NamedAdapter] = (),
    options: SlotOptions = DEFAULT_OPTIONS,
    *,
    config: ShadowConfig | None = None,
    revision: str | None = None,
    registered: Callable[[BaseGeometry], Sequence[AdapterManifest]] | None = None,
) -> StartPlan:
    """Read the base's config and the named adapters, and derive the slot classes.

    Args:
        model: directory or repository of the base model; its code is never trusted.
        adapters: to be served from the start.
        options: operator's wishes; ignored when `config` is given.
        config: complete settings instead of derived ones.
        revision: of the base's repository.
        registered: returns the adapters of earlier runs on this base; the slots hold them too, unless they cannot
            share one server with the named ones.

    Raises:
        UnsupportedStackError: vLLM version or base architecture without shadow path.
        AdapterError, AdapterNotFoundError: a named adapter is at fault.
        ConfigError: the adapters cannot share one server.
    """
    check_version()
    hf_config = get_config(model, trust_remote_code=False, revision=revision)
    check_architectures(list(getattr(hf_config, "architectures", None) or ()))
    base = base_geometry(hf_config)
    manifests = {
        a.name: load_adapter(a.path, base, backbone_config=a.backbone_config).manifest
        for a in adapters
    }
    if config is None:
        earlier = [] if registered is None else list(registered(base))
        config = _derive(base, list(manifests.values()), earlier, options)
    return StartPlan(base, config, manifests)


def _derive(
    base: BaseGeometry,
    named: list[AdapterManifest],
    earlier: list[AdapterManifest],
    options: SlotOptions,
) -> ShadowConfig:
    if not earlier:
        return derive_config(base, named, options)
    try:
        return derive_config(base, named + earlier, options)
    except ConfigError as error:
        # What an earlier run served under other settings must not keep this one from starting.
        logger.warning("slots are sized without the adapters of earlier runs: %s", error)
        return derive_config(base, named, options)


def shadow_engine_args(
    config: ShadowConfig, existing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the engine arguments of a config, on top of what the user passes.

    Raises:
        ConfigError: the user's arguments ask for vLLM's own LoRA, another worker class or another scheduler.
    """
    existing = existing or {}
    if existing.get("worker_cls", "auto") not in ("auto", WORKER_CLASS):
        raise ConfigError(
            f"worker_cls {existing['worker_cls']!r} cannot be combined with the shadow path"
        )
    if existing.get("scheduler_cls") not in (None, SCHEDULER_FACTORY):
        raise ConfigError(
            f"scheduler_cls {existing['scheduler_cls']!r} cannot be combined with the shadow path: "
            "adapters that wait for a slot would get no turn"
        )
    for name, reason in _REFUSED_ARGUMENTS.items():
        if existing.get(name):
            raise ConfigError(f"{name} cannot be combined with the shadow path: {reason}")
    additional = dict(existing.get("additional_config") or {})
    additional["shadow"] = config.to_dict()
    return {
        "enable_lora": True,
        "max_loras": config.max_resident_adapters,
        "max_cpu_loras": config.max_host_adapters,
        "worker_cls": WORKER_CLASS,
        "scheduler_cls": SCHEDULER_FACTORY,
        "additional_config": additional,
    }


def describe_slots(plan: StartPlan, element_bytes: int) -> list[str]:
    """Return one line per slot class with its geometry and device memory on one unsharded worker."""
    shard = ShardPlan((0, plan.base.num_layers), has_backbone=True)
    lines = []
    for index, slot_class in enumerate(plan.config.slot_classes):
        spec = slot_class.spec
        per_slot = slot_bytes(plan.config, index, plan.base.hidden_size, shard, element_bytes)
        lines.append(
            f"slot class {slot_class.name}: {slot_class.num_slots} slots, {spec.num_layers} shadow layers, "
            f"MLP {spec.intermediate_size}, {spec.num_heads} heads, rank {plan.config.max_injection_rank}, "
            f"gate {plan.config.max_gate_size}: {per_slot / 2**20:.1f} MiB a slot, "
            f"{per_slot * slot_class.num_slots / 2**20:.1f} MiB together"
        )
    return lines
