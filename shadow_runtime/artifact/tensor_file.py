"""A safetensors file from an untrusted source: the header is parsed, capped and checked before any data is read.

Runs in: API process | GPU worker. CPU tensors only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import torch

from shadow_runtime.artifact.json_file import parse_json_object
from shadow_runtime.errors import AdapterFileError, AdapterTensorError
from shadow_runtime.quote import quote
from shadow_runtime.types import AdapterLimits

# Integers of the dtype's width, signed and unsigned, and the bits of its positive infinity.
_BITS = {
    torch.float32: (torch.int32, np.uint32, 0x7F800000),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 4
# Linux moves at most 2 GiB in one read.
_READ_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header states it.

    Attributes:
        dtype: fp32, fp16 or bf16.
        shape: sizes, all positive.
        begin, end: byte range inside the data section.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """An open safetensors file whose header has passed every check; owns its descriptor.

    Attributes:
        entries: name to what the header says of the tensor.
        metadata: the header's own texts; nothing about them was checked.

    Args:
        descriptor: of a regular file.
        name: of the file, for messages.
        limits: caps on file, header and number of tensors.

    Raises:
        AdapterFileError: truncated, oversized, or a header that is malformed or does not cover the data exactly.
        AdapterTensorError: a dtype other than F32, F16, BF16 or an impossible shape.
    """

    def __init__(self, descriptor: int, name: str, limits: AdapterLimits) -> None:
        self._descriptor = descriptor
        self._name = name
        try:
            header = _read_header(descriptor, name, limits)
            entries = {key: _parse_entry(key, value) for key, value in header.fields.items()}
            _check_coverage(entries, name, header.data_bytes)
            self.entries: Mapping[str, TensorEntry] = MappingProxyType(entries)
            self.metadata: Mapping[str, str] = MappingProxyType(header.metadata)
            self._data_start = header.data_start
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, once."""
        os.close(self._descriptor)

    def read(self, key: str) -> torch.Tensor:
        """Read one tensor and check that every element is finite.

        Raises:
            AdapterFileError: the file became shorter since it was opened.
            AdapterTensorError: the tensor holds NaN or Inf.
        """
        entry = self.entries[key]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self.read_into(tensor, key)
        return tensor

    def read_into(self, target: torch.Tensor, key: str, first: int = 0) -> None:
        """Read some of one tensor's elements and check that they are finite. Threads may read one file at once.

        Args:
            target: contiguous CPU tensor of the entry's dtype that takes as many elements as it has.
            key: the tensor in the file.
            first: its first element that is read, row-major.

        Raises:
            AdapterFileError: the file became shorter since it was opened.
            AdapterTensorError: one of them is NaN or Inf.
        """
        entry = self.entries[key]
        self._read_bytes_into(tensor_bytes(target), entry.begin + first * entry.dtype.itemsize)
        if not is_finite(target):
            raise AdapterTensorError(f"tensor {quote(key)} holds NaN or Inf")

    def _read_bytes_into(self, buffer: memoryview, begin: int) -> None:
        done = 0
        while done < len(buffer):
            part = buffer[done : done + _READ_BYTES]
            count = _read_part(self._descriptor, self._name, part, self._data_start + begin + done)
            if count == 0:
                raise AdapterFileError(f"{quote(self._name)} became shorter while it was read")
            done += count


def read_header_fields(descriptor: int, name: str, limits: AdapterLimits) -> dict[str, Any]:
    """Read the header of a safetensors file and close `descriptor`; the entries are as the file has them.

    Args:
        descriptor: of a regular file.
        name: of the file, for messages.
        limits: caps on file, header and number of tensors.

    Raises:
        AdapterFileError: truncated, oversized, or not one JSON object within the caps.
    """
    try:
        return _read_header(descriptor, name, limits).fields
    finally:
        os.close(descriptor)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or Inf; a hundred times faster than asking each element.

    The bits are compared as integers, in the calling thread alone: what is not finite has all exponent bits, so as a
    signed integer it is above every finite number when positive, and as an unsigned one when negative.

    Args:
        tensor: any non-empty contiguous CPU tensor of fp32, fp16 or bf16.
    """
    signed, unsigned, infinity = _BITS[tensor.dtype]
    bits = tensor.view(-1).view(signed).numpy()
    negative_infinity = infinity + (1 << (8 * tensor.dtype.itemsize - 1))
    return bool(bits.max() < infinity and bits.view(unsigned).max() < negative_infinity)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, slots=True)
class _Header:
    fields: dict[str, Any]
    metadata: dict[str, str]
    data_start: int
    data_bytes: int


def _read_header(descriptor: int, name: str, limits: AdapterLimits) -> _Header:
    num_bytes = os.fstat(descriptor).st_size
    text = _read_header_text(descriptor, name, num_bytes, limits)
    fields = parse_json_object(text, f"the header of {name}", AdapterFileError)
    metadata = fields.pop("__metadata__", {})
    if not _is_metadata(metadata):
        raise AdapterFileError(f"the metadata of {quote(name)} is not an object of strings")
    if len(fields) > limits.max_tensors:
        raise AdapterFileError(
            f"{quote(name)} lists {len(fields)} tensors, over the limit of {limits.max_tensors}"
        )
    data_start = _LENGTH_BYTES + len(text)
    return _Header(fields, metadata, data_start, num_bytes - data_start)


def _is_metadata(value: object) -> bool:
    return isinstance(value, dict) and all(type(text) is str for text in value.values())


def _read_header_text(descriptor: int, name: str, num_bytes: int, limits: AdapterLimits) -> bytes:
    if num_bytes > limits.max_file_bytes:
        raise AdapterFileError(
            f"{quote(name)} has {num_bytes} bytes, over the limit of {limits.max_file_bytes}"
        )
    length = int.from_bytes(_read_bytes(descriptor, name, _LENGTH_BYTES, 0), "little")
    if num_bytes < _LENGTH_BYTES or length > num_bytes - _LENGTH_BYTES:
        raise AdapterFileError(f"{quote(name)} is truncated or not a safetensors file")
    if length > limits.max_header_bytes:
        raise AdapterFileError(
            f"{quote(name)} has a header of {length} bytes, over the limit of {limits.max_header_bytes}"
        )
    header = _read_bytes(descriptor, name, length, _LENGTH_BYTES)
    if not header.startswith(b"{"):
        raise AdapterFileError(f"{quote(name)} is truncated or not a safetensors file")
    return header


def _read_bytes(descriptor: int, name: str, length: int, position: int) -> bytes:
    buffer = bytearray(length)
    count = _read_part(descriptor, name, memoryview(buffer), position)
    return bytes(buffer[:count])


def _read_part(descriptor: int, name: str, buffer: memoryview, position: int) -> int:
    try:
        return os.preadv(descriptor, [buffer], position)
    except OSError as error:
        raise AdapterFileError(f"{quote(name)} cannot be read: {error.strerror}") from None


def _parse_entry(key: str, value: object) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise AdapterFileError(f"the header entry of tensor {quote(key)} is malformed")
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise AdapterTensorError(
            f"tensor {quote(key)} has dtype {quote(value['dtype'])}, expected F32, F16 or BF16"
        )
    shape = _sizes(value["shape"], key)
    offsets = _sizes(value["data_offsets"], key)
    if not shape or len(shape) > _MAX_DIMENSIONS or 0 in shape:
        raise AdapterTensorError(f"tensor {quote(key)} is empty or has no usable shape")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise AdapterFileError(f"tensor {quote(key)} has a byte range that does not fit its shape")
    return TensorEntry(dtype, shape, *offsets)


def _sizes(value: Any, key: str) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else [None]
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in sizes):
        raise AdapterFileError(f"the header entry of tensor {quote(key)} is malformed")
    return tuple(sizes)


def _check_coverage(entries: dict[str, TensorEntry], name: str, data_bytes: int) -> None:
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.begin):
        if entry.begin != position:
            raise AdapterFileError(f"{quote(name)} has tensors that overlap or leave gaps")
        position = entry.end
    if position != data_bytes:
        raise AdapterFileError(
            f"{quote(name)} is truncated or has trailing bytes: its header describes {position} bytes"
            f" of data, it has {data_bytes}"
        )
