"""From an adapter directory, untrusted bytes, to a canonical adapter.

Runs in: API process | GPU worker. Reads JSON and safetensors only; imports and fetches nothing that a file names.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import Executor
from pathlib import Path

import torch

from shadow_runtime.artifact import dialect_paper, dialect_peft
from shadow_runtime.artifact.canonical import CanonicalAdapter
from shadow_runtime.artifact.digest import compute_digest, hashed_maths
from shadow_runtime.artifact.plan import AdapterPlan
from shadow_runtime.artifact.tensor_file import TensorFile
from shadow_runtime.errors import AdapterConfigError, AdapterFileError
from shadow_runtime.store.directory import AdapterDirectory
from shadow_runtime.types import AdapterLimits, AdapterManifest, BaseGeometry

_DEFAULT_LIMITS = AdapterLimits()


def load_adapter(
    path: Path,
    base: BaseGeometry,
    limits: AdapterLimits = _DEFAULT_LIMITS,
    *,
    backbone_config: Path | None = None,
    threads: Executor | None = None,
) -> CanonicalAdapter:
    """Read, validate and canonicalise the adapter at `path`.

    Args:
        path: directory that `save_pretrained` of `shadow-peft` or `peft` wrote.
        base: shape of the base model that it must fit.
        limits: what the server allows; checked before anything is allocated.
        backbone_config: config file of an explicit shadow backbone, from the operator; None to look for
            config.json beside the adapter.
        threads: read, check and hash tensors there at once; None does it in the calling thread.

    Returns: CPU tensors as stored, finite and contiguous, under the names of `canonical`.

    Raises:
        AdapterNotFoundError: no such directory.
        AdapterFileError: a file is missing, truncated, oversized, or not a regular safetensors or JSON file.
        AdapterConfigError: a config field is missing, unknown, mistyped, or asks for what is not supported.
        AdapterTensorError: a tensor is missing, unknown, of the wrong shape or dtype, or not finite.
        AdapterMismatchError: made for a base of another shape.
        AdapterLimitError: over `limits`.
    """
    with AdapterDirectory(path) as directory:
        is_paper = _is_paper(directory)
        dialect = dialect_paper if is_paper else dialect_peft
        fields = dialect.read_config(directory)
        name = dialect.tensor_file_name(directory)
        with TensorFile(directory.open_file(name), name, limits) as file:
            plan = dialect.plan(fields, directory, file.entries, base, limits, backbone_config)
            plan.check()
            head_notes = dialect_paper.read_heads(directory, limits) if is_paper else ()
            tensors = _read_canonical(file, plan, threads)
        digest = compute_digest(hashed_maths(plan), tensors, threads)
        manifest = _manifest(plan, digest, tensors, directory.path, backbone_config, head_notes)
    return CanonicalAdapter(manifest, tensors)


def _is_paper(directory: AdapterDirectory) -> bool:
    is_paper = directory.has(dialect_paper.CONFIG_FILE)
    is_peft = directory.has(dialect_peft.CONFIG_FILE)
    if is_paper and is_peft:
        raise AdapterConfigError(
            f"the adapter has both {dialect_paper.CONFIG_FILE} and {dialect_peft.CONFIG_FILE}"
        )
    if not is_paper and not is_peft:
        raise AdapterFileError(
            f"the adapter has neither {dialect_paper.CONFIG_FILE} nor {dialect_peft.CONFIG_FILE}"
        )
    return is_paper


def _read_canonical(
    file: TensorFile, plan: AdapterPlan, threads: Executor | None
) -> dict[str, torch.Tensor]:
    # Large ones first, so that no thread is left with one at the end.
    keys = sorted(plan.file_keys, key=lambda key: -math.prod(plan.entries[key].shape))
    read = (map if threads is None else threads.map)(file.read, [plan.file_keys[k] for k in keys])
    return plan.build(dict(zip(keys, read, strict=True)))


def _manifest(
    plan: AdapterPlan,
    digest: str,
    tensors: dict[str, torch.Tensor],
    path: Path,
    backbone_config: Path | None,
    head_notes: tuple[str, ...],
) -> AdapterManifest:
    return AdapterManifest(
        digest=digest,
        format=plan.format,
        path=str(path),
        backbone_config=None if backbone_config is None else os.path.abspath(backbone_config),
        injection_rank=plan.injection_rank,
        gate_size=plan.gate_size,
        scale=plan.scale,
        activation=plan.activation,
        has_norm=plan.has_norm,
        has_update_bias=plan.has_update_bias,
        injects=plan.injects,
        updates=plan.updates,
        backbone=plan.backbone,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        tensor_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        notes=plan.notes + head_notes,
    )
