"""What the adapter routes tell: adapters, versions and validation reports as JSON objects.

Runs in: API process.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from shadow_server.admin.naming import shown_name
from shadow_server.engine import (
    AdapterEntry,
    AdapterManifest,
    AdapterRegistry,
    ValidationReport,
    VersionRecord,
)
from shadow_server.errors import scrub
from shadow_server.tenancy.identity import Identity

_DIRECTORY = "directory "


def directory_source(shown_path: str) -> str:
    """Return the source line of a directory, given as relative to its root."""
    return f"{_DIRECTORY}{shown_path}"


def source_path(source: str) -> str | None:
    """Return the path in a directory's source line, None for other sources."""
    return source.removeprefix(_DIRECTORY) if source.startswith(_DIRECTORY) else None


def describe_entry(
    entry: AdapterEntry, adapters: AdapterRegistry, identity: Identity
) -> dict[str, Any]:
    """Return one adapter as `AdapterCard` has it; nothing in it is a path of the machine."""
    record, manifest = entry.record, entry.manifest
    name = shown_name(entry.name, identity)
    return {
        "id": name,
        "object": "adapter",
        "name": name,
        "tenant": entry.name.tenant,
        "version": entry.version,
        "digest": entry.digest,
        "state": entry.state.value,
        "level": entry.level,
        "pinned": adapters.is_pinned(entry.name),
        "created": record.created_at_unix,
        "format": manifest.format,
        "source": record.source,
        "path": source_path(record.source),
        "num_parameters": manifest.num_parameters,
        "stored_bytes": record.artifact.stored_bytes,
        "num_running_requests": entry.num_leases,
        "failure": None if entry.failure is None else scrub(str(entry.failure)),
        "notes": list(manifest.notes),
    }


def describe_version(record: VersionRecord, *, is_current: bool) -> dict[str, Any]:
    """Return one version as `VersionCard` has it."""
    manifest = record.artifact.manifest
    return {
        "object": "adapter.version",
        "version": record.version,
        "is_current": is_current,
        "digest": record.digest,
        "origin": record.origin,
        "source": record.source,
        "created": record.created_at_unix,
        "format": manifest.format,
        "num_parameters": manifest.num_parameters,
        "stored_bytes": record.artifact.stored_bytes,
    }


def describe_report(report: ValidationReport, stored_bytes: int) -> dict[str, Any]:
    """Return a validation as `ValidationCard` has it."""
    card = _report_card(report.error_code, report.error_message, report.manifest)
    return card | {
        "stored_bytes": stored_bytes,
        "slot_class": report.slot_class,
        "slot_bytes": report.slot_bytes,
        "base_fingerprint": report.base_fingerprint,
        "tensors": [dataclasses.asdict(t) | {"shape": list(t.shape)} for t in report.tensors],
        "seconds": report.seconds,
    }


def describe_refusal(code: str, message: str, seconds: float) -> dict[str, Any]:
    """Return the validation of files that were refused before anything in them was read."""
    return _report_card(code, message, None) | {
        "stored_bytes": None,
        "slot_class": None,
        "slot_bytes": None,
        "base_fingerprint": None,
        "tensors": [],
        "seconds": seconds,
    }


def _report_card(
    code: str | None, message: str | None, manifest: AdapterManifest | None
) -> dict[str, Any]:
    error = None if code is None else {"code": code, "message": scrub(message or code)}
    return {
        "object": "adapter.validation",
        "is_valid": manifest is not None and error is None,
        "error": error,
        "digest": manifest and manifest.digest,
        "format": manifest and manifest.format,
        "injection_rank": manifest and manifest.injection_rank,
        "gate_size": manifest and manifest.gate_size,
        "num_parameters": manifest and manifest.num_parameters,
        "tensor_bytes": manifest and manifest.tensor_bytes,
        "backbone": manifest and manifest.backbone.to_dict(),
        "notes": list(manifest.notes) if manifest else [],
    }
