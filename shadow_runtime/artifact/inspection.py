"""What a checkpoint's weight file says it holds, also where the adapter is refused.

Runs in: the sandbox's own processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shadow_runtime.artifact import dialect_paper, dialect_peft
from shadow_runtime.artifact.tensor_file import TensorFile, read_header_fields
from shadow_runtime.errors import AdapterError, AdapterNotFoundError, AdapterTensorError
from shadow_runtime.store.directory import AdapterDirectory
from shadow_runtime.types import AdapterLimits, TensorReport

_MAX_DIMENSIONS = 16
_MAX_DTYPE = 16


def inspect_tensors(
    path: Path, limits: AdapterLimits, *, is_finite: bool | None = None
) -> tuple[TensorReport, ...]:
    """Return what the header of an adapter's weight file lists, in file order; empty where it cannot be read.

    Args:
        path: of the adapter's directory.
        limits: caps on file and header, as when it is loaded.
        is_finite: what is known about every tensor's elements; None to read them.
    """
    try:
        with AdapterDirectory(path) as directory:
            name = _tensor_file_name(directory)
            fields = read_header_fields(directory.open_file(name), name, limits)
            reports = tuple(
                report
                for key, value in fields.items()
                if (report := _report(key, value, is_finite)) is not None
            )
            return (
                reports if is_finite is not None else _looked_at(directory, name, reports, limits)
            )
    except (AdapterError, AdapterNotFoundError):
        return ()


def _tensor_file_name(directory: AdapterDirectory) -> str:
    if directory.has(dialect_paper.CONFIG_FILE):
        return dialect_paper.tensor_file_name(directory)
    return dialect_peft.tensor_file_name(directory)


def _report(key: str, value: Any, is_finite: bool | None) -> TensorReport | None:
    """Return one entry as it stands; None where it is not one."""
    if not isinstance(value, dict):
        return None
    dtype, shape = value.get("dtype"), _sizes(value.get("shape"))
    offsets = _sizes(value.get("data_offsets"))
    if type(dtype) is not str or shape is None or offsets is None or len(offsets) != 2:
        return None
    num_bytes = max(offsets[1] - offsets[0], 0)
    return TensorReport(key, dtype[:_MAX_DTYPE], shape, num_bytes, is_finite)


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(size) is int for size in value) else None


def _looked_at(
    directory: AdapterDirectory,
    name: str,
    reports: tuple[TensorReport, ...],
    limits: AdapterLimits,
) -> tuple[TensorReport, ...]:
    """Return the reports with `is_finite` where the file's header passes every check."""
    try:
        with TensorFile(directory.open_file(name), name, limits) as file:
            return tuple(_with_finite(report, file) for report in reports)
    except AdapterError:
        return reports


def _with_finite(report: TensorReport, file: TensorFile) -> TensorReport:
    is_finite: bool | None = True
    try:
        file.read(report.name)
    except AdapterTensorError:
        is_finite = False
    except AdapterError:
        is_finite = None
    return TensorReport(report.name, report.dtype, report.shape, report.num_bytes, is_finite)
