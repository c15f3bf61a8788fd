"""A canonical adapter as one file: written by whoever validated it, read back without any conversion.

Runs in: the sandbox's own processes (writing) | GPU worker (reading).

It is a safetensors file under `CANONICAL_FILE`, beside the checkpoint that it was made from. Reading trusts nothing
that it says: sizes are bounded, names and shapes must be those of its manifest, every element is looked at, and the
digest is computed again. It is an aid, not a source: where it is missing or refused, the checkpoint is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from types import TracebackType
from typing import NamedTuple

import torch

from shadow_runtime.artifact.canonical import CanonicalAdapter, canonical_shapes
from shadow_runtime.artifact.digest import (
    DTYPE_NAMES,
    PIECE_BYTES,
    digest_of_pieces,
    hash_piece,
    hashed_maths,
)
from shadow_runtime.artifact.plan import check_backbone, check_shape, check_widths
from shadow_runtime.artifact.tensor_file import TensorFile, tensor_bytes
from shadow_runtime.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
    DigestMismatchError,
)
from shadow_runtime.quote import quote, quote_first
from shadow_runtime.store.budget import CANONICAL_FILE
from shadow_runtime.store.disk import write_all
from shadow_runtime.types import AdapterLimits, AdapterManifest, BaseGeometry

_VERSION = "1"
_ALIGNMENT = 8

Place = Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor | None]
"""Given a canonical tensor's name, shape and dtype: the contiguous CPU tensor to read it into, None for a new one."""


def encode_header(adapter: CanonicalAdapter) -> bytes:
    """Return what the file holds before its data; the data are the tensors in the order of names."""
    manifest = json.dumps(adapter.manifest.to_dict(), allow_nan=False)
    header: dict[str, object] = {"__metadata__": {"version": _VERSION, "manifest": manifest}}
    position = 0
    for name, tensor in sorted(adapter.tensors.items()):
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_canonical(adapter: CanonicalAdapter, descriptor: int, max_bytes: int) -> bool:
    """Write an adapter to an empty file.

    Args:
        adapter: any validated one.
        descriptor: of the file, at its start.
        max_bytes: that it may take.

    Returns: False when it takes more than that or cannot be written; the file is empty then.
    """
    header = encode_header(adapter)
    if len(header) + adapter.manifest.tensor_bytes > max_bytes:
        return False
    parts = [memoryview(header), *(tensor_bytes(t) for _, t in sorted(adapter.tensors.items()))]
    try:
        for part in parts:
            write_all(descriptor, part)
    except OSError:
        os.ftruncate(descriptor, 0)
        return False
    return True


class CanonicalFile:
    """An open canonical file whose header has passed every check; owns its descriptor.

    Attributes:
        manifest: what the file says that it holds; `read` checks that it does. Its paths are the writer's.

    Args:
        descriptor: of a regular file.
        base: shape of the base model.
        limits: what the server allows.

    Raises:
        AdapterFileError: not a canonical file of this version.
        AdapterTensorError: a tensor is missing, unknown or of another shape than the manifest says.
        AdapterMismatchError, AdapterLimitError: not for this base, or over `limits`.
    """

    def __init__(self, descriptor: int, base: BaseGeometry, limits: AdapterLimits) -> None:
        self._file = TensorFile(descriptor, CANONICAL_FILE, limits)
        try:
            self.manifest = _parse_manifest(self._file.metadata)
            self._check(base, limits)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> CanonicalFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, place: Place, threads: Executor) -> CanonicalAdapter:
        """Read every tensor where `place` wants it, and check what was read.

        Args:
            place: says where.
            threads: read, check and hash pieces there at once.

        Raises:
            AdapterFileError: the file became shorter.
            AdapterTensorError: an element is not finite.
            DigestMismatchError: the manifest's digest is not that of its maths and the tensors.
        """
        tensors = {}
        for name, entry in sorted(self._file.entries.items()):
            target = place(name, entry.shape, entry.dtype)
            tensors[name] = (
                torch.empty(entry.shape, dtype=entry.dtype) if target is None else target
            )
        pieces = [piece for name, tensor in tensors.items() for piece in _pieces(name, tensor)]
        hashes = self._read_pieces(pieces, threads)
        digest = digest_of_pieces(hashed_maths(self.manifest), tensors, hashes)
        if digest != self.manifest.digest:
            raise DigestMismatchError(
                f"{quote(CANONICAL_FILE)} is said to hold {self.manifest.digest}, it holds {digest}"
            )
        return CanonicalAdapter(self.manifest, tensors)

    def _read_pieces(self, pieces: list[_Piece], threads: Executor) -> Iterable[bytes]:
        # Large ones first, so that no thread is left with one at the end.
        order = sorted(range(len(pieces)), key=lambda index: -pieces[index].target.nbytes)
        hashes = dict(
            zip(order, threads.map(self._read_piece, map(pieces.__getitem__, order)), strict=True)
        )
        return (hashes[index] for index in range(len(pieces)))

    def _read_piece(self, piece: _Piece) -> bytes:
        self._file.read_into(piece.target, piece.name, piece.first)
        return hash_piece(tensor_bytes(piece.target))

    def _check(self, base: BaseGeometry, limits: AdapterLimits) -> None:
        manifest, entries = self.manifest, self._file.entries
        if len(manifest.injects) != base.num_layers or len(manifest.updates) != base.num_layers:
            raise AdapterMismatchError(
                f"the adapter is for a base of {len(manifest.injects)} layers, this base has {base.num_layers}"
            )
        check_widths(manifest.injection_rank, manifest.gate_size, limits)
        check_backbone(manifest.backbone, base, limits)
        shapes = canonical_shapes(manifest, base.hidden_size)
        if odd := shapes.keys() ^ entries.keys():
            raise AdapterTensorError(
                f"{quote(CANONICAL_FILE)} lacks or should not have {quote_first(odd)}"
            )
        for name, shape in shapes.items():
            check_shape(name, entries[name].shape, shape)


class _Piece(NamedTuple):
    """Some elements of one tensor: what the digest hashes at once."""

    name: str
    first: int
    target: torch.Tensor


def _pieces(name: str, tensor: torch.Tensor) -> Iterable[_Piece]:
    flat, step = tensor.view(-1), PIECE_BYTES // tensor.dtype.itemsize
    return (_Piece(name, at, flat[at : at + step]) for at in range(0, flat.numel(), step))


def _parse_manifest(metadata: Mapping[str, str]) -> AdapterManifest:
    if metadata.get("version") != _VERSION:
        raise AdapterFileError(
            f"{quote(CANONICAL_FILE)} has version {quote(metadata.get('version'))}, this is {_VERSION}"
        )
    try:
        manifest = AdapterManifest.from_dict(json.loads(metadata["manifest"]))
        is_usable = all(type(size) is int and size >= 0 for size in _sizes(manifest))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        is_usable = False
    if not is_usable:
        raise AdapterFileError(f"{quote(CANONICAL_FILE)} has no usable manifest")
    return manifest


def _sizes(manifest: AdapterManifest) -> Iterable[object]:
    """Return everything that shapes are computed from."""
    spec = manifest.backbone
    return (
        manifest.injection_rank,
        manifest.gate_size,
        spec.num_layers,
        spec.hidden_size,
        spec.intermediate_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.vocab_size,
        spec.learned_positions,
    )
