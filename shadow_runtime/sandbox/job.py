"""What one sandboxed job does: an adapter's path in, everything that is known about it out, as JSON.

Runs in: the sandbox's own processes (a fork of the zygote).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.canonical_file import write_canonical
from shadow_runtime.artifact.inspection import inspect_tensors
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import ShadowError
from shadow_runtime.slots.layout import ShardPlan, choose_class, slot_bytes
from shadow_runtime.types import AdapterManifest, BaseGeometry


@dataclass(frozen=True, slots=True)
class JobContext:
    """What every job of a server is checked against, and what it may take.

    Attributes:
        base: shape of the base model.
        config: slot classes and limits.
        element_bytes: bytes of one number in the model's dtype.
        max_memory_bytes: address space that an adapter may take.
        max_seconds: processor time that it may take.
    """

    base: BaseGeometry
    config: ShadowConfig
    element_bytes: int
    max_memory_bytes: int
    max_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; `from_dict` is its inverse."""
        return {
            "base": dataclasses.asdict(self.base),
            "config": self.config.to_dict(),
            "element_bytes": self.element_bytes,
            "max_memory_bytes": self.max_memory_bytes,
            "max_seconds": self.max_seconds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JobContext:
        """Rebuild a context from `to_dict` output, also after a trip through JSON."""
        return cls(
            base=BaseGeometry(**data["base"]),
            config=ShadowConfig.from_dict(data["config"]),
            element_bytes=data["element_bytes"],
            max_memory_bytes=data["max_memory_bytes"],
            max_seconds=data["max_seconds"],
        )


def run_job(request: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Return the answer to one request.

    Args:
        request: `path`, `backbone_config` (or None), `wants_tensors`, and the descriptor `output` (or None) that the
            canonical adapter is written to unless it takes more than `max_canonical_bytes`.
        context: of the server.

    Returns: `manifest`, `slot_class`, `slot_bytes`, `tensors`, `error_code` and `error_message`, each None where there
        is none.
    """
    answer: dict[str, Any] = dict.fromkeys(
        ("manifest", "slot_class", "slot_bytes", "tensors", "error_code", "error_message")
    )
    try:
        answer |= _validate(request, context)
    except ShadowError as error:
        answer |= {"error_code": error.code, "error_message": str(error)}
    if request["wants_tensors"]:
        # Every element of a valid adapter was looked at already.
        is_finite = True if answer["manifest"] is not None else None
        path, limits = Path(request["path"]), context.config.limits
        reports = inspect_tensors(path, limits, is_finite=is_finite)
        answer["tensors"] = [dataclasses.asdict(report) for report in reports]
    return answer


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a job failed because it may not have more memory; torch has no class for that."""
    is_allocator = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_allocator or isinstance(error, MemoryError)


def _validate(request: dict[str, Any], context: JobContext) -> dict[str, Any]:
    backbone = request["backbone_config"]
    adapter = load_adapter(
        Path(request["path"]),
        context.base,
        context.config.limits,
        backbone_config=None if backbone is None else Path(backbone),
    )
    manifest = adapter.manifest
    index = choose_class(context.config, manifest)
    if request["output"] is not None:
        write_canonical(adapter, request["output"], request["max_canonical_bytes"])
    return {
        "manifest": manifest.to_dict(),
        "slot_class": context.config.slot_classes[index].name,
        "slot_bytes": _slot_bytes(index, manifest, context),
    }


def _slot_bytes(index: int, manifest: AdapterManifest, context: JobContext) -> int:
    whole = ShardPlan((0, len(manifest.injects)), has_backbone=True)
    width = context.base.hidden_size
    return slot_bytes(context.config, index, width, whole, context.element_bytes)
