"""The identity of an adapter: sha256 over its canonical maths and tensors, never over paths or names.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from shadow_runtime.artifact.tensor_file import tensor_bytes

_DOMAIN = b"shadow adapter v1\n"
_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def compute_digest(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return `sha256:<64 hex digits>`.

    Args:
        config: JSON-able maths of the adapter; equal mappings give equal digests whatever their order.
        tensors: canonical name to contiguous CPU tensor of fp32, fp16 or bf16.
    """
    digest = hashlib.sha256(_DOMAIN)
    digest.update(_line(dict(config)))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_line([name, _DTYPE_NAMES[tensor.dtype], list(tensor.shape)]))
        digest.update(tensor_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


def _line(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"
