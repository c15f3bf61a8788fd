"""The identity of an adapter: sha256 over its canonical maths and tensors, never over paths or names.

Runs in: API process | GPU worker.

Tensors enter as the hashes of their pieces, so that several threads can hash one adapter: in one sequence, 58 MB take
30 ms, more than everything else between page cache and slot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import torch

from shadow_runtime.artifact.tensor_file import tensor_bytes

if TYPE_CHECKING:
    from shadow_runtime.artifact.plan import AdapterPlan
    from shadow_runtime.types import AdapterManifest

PIECE_BYTES = 1 << 22
"""Tensors are hashed in pieces of this size; the last one is what is left."""

_DOMAIN = b"shadow adapter v2\n"
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def hashed_maths(maths: AdapterPlan | AdapterManifest) -> dict[str, Any]:
    """Return everything but the tensors that decides what an adapter computes, JSON-able."""
    return {
        "scale": maths.scale,
        "activation": maths.activation,
        "has_norm": maths.has_norm,
        "has_update_bias": maths.has_update_bias,
        "injects": maths.injects,
        "updates": maths.updates,
        "backbone": maths.backbone.to_dict(),
    }


def compute_digest(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    threads: Executor | None = None,
) -> str:
    """Return `sha256:<64 hex digits>`.

    Hashed are a line of the domain, one of the config, and for each tensor in the order of names a line with name,
    dtype and shape and then the sha256 of every 4 MiB of its bytes; dtype and shape say how many.

    Args:
        config: JSON-able maths of the adapter; equal mappings give equal digests whatever their order.
        tensors: canonical name to contiguous CPU tensor of fp32, fp16 or bf16.
        threads: hash pieces there at once; None hashes in the calling thread. The digest is the same.
    """
    pieces = [piece for name in sorted(tensors) for piece in _pieces(tensors[name])]
    return digest_of_pieces(
        config, tensors, (map if threads is None else threads.map)(hash_piece, pieces)
    )


def digest_of_pieces(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], hashes: Iterable[bytes]
) -> str:
    """Return what `compute_digest` does, of pieces that were hashed before.

    Args:
        config: as there.
        tensors: as there; their bytes are not read.
        hashes: `hash_piece` of every piece, tensors in the order of names.
    """
    left = iter(hashes)
    digest = hashlib.sha256(_DOMAIN)
    digest.update(_line(dict(config)))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_line([name, DTYPE_NAMES[tensor.dtype], list(tensor.shape)]))
        for _ in range(0, tensor.nbytes, PIECE_BYTES):
            digest.update(next(left))
    return f"sha256:{digest.hexdigest()}"


def hash_piece(piece: memoryview) -> bytes:
    """Return the sha256 of one piece of a tensor, 32 bytes."""
    return hashlib.sha256(piece).digest()


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    data = tensor_bytes(tensor)
    return (data[begin : begin + PIECE_BYTES] for begin in range(0, len(data), PIECE_BYTES))


def _line(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"
