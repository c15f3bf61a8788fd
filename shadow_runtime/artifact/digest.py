"""The identity of an adapter: sha256 over its canonical maths and tensors, never over paths or names.

Runs in: API process | GPU worker.

Tensors enter as the hashes of their pieces, so that several threads can hash one adapter: in one sequence, 58 MB take
30 ms, more than everything else between page cache and slot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import torch

from shadow_runtime.artifact.tensor_file import tensor_bytes

_DOMAIN = b"shadow adapter v2\n"
_PIECE_BYTES = 1 << 22
_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


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
    names = sorted(tensors)
    pieces = [piece for name in names for piece in _pieces(tensors[name])]
    hashes = iter((map if threads is None else threads.map)(_hash, pieces))
    digest = hashlib.sha256(_DOMAIN)
    digest.update(_line(dict(config)))
    for name in names:
        tensor = tensors[name]
        digest.update(_line([name, _DTYPE_NAMES[tensor.dtype], list(tensor.shape)]))
        for _ in _pieces(tensor):
            digest.update(next(hashes))
    return f"sha256:{digest.hexdigest()}"


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    data = tensor_bytes(tensor)
    return (data[begin : begin + _PIECE_BYTES] for begin in range(0, len(data), _PIECE_BYTES))


def _hash(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def _line(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"
