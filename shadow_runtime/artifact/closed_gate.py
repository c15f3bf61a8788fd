"""Updates that change nothing: a gate that is closed for every input, exactly.

Runs in: the command's own process. CPU tensors only.

    s + sigmoid(gate) * (transform - s) = s      where sigmoid(gate) is 0 in fp32
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from shadow_runtime.artifact.canonical import CanonicalAdapter

CLOSED = -1.0e4
"""A gate's value that is written for a closed one; fp16 has it, too."""

# exp(104) is more than fp32 holds the reciprocal of.
_LEAST_CLOSED = -104.0
_GATE = 1


def is_closed(adapter: CanonicalAdapter, layer: int) -> bool:
    """Return whether the update in front of `layer` leaves every state as it is.

    Only gates that do not depend on their input are recognised, which is how the writers close one: behind a norm whose
    weight is zero, or with an output weight that is zero.
    """
    values = _constant_gate(adapter, layer)
    return values is not None and bool((values <= _LEAST_CLOSED).all())


def _constant_gate(adapter: CanonicalAdapter, layer: int) -> torch.Tensor | None:
    tensors, manifest = adapter.tensors, adapter.manifest
    out = tensors["boundary.update_out"][layer, _GATE].float()
    bias = torch.zeros(out.shape[1])
    if manifest.has_update_bias:
        bias = tensors["boundary.update_out_bias"][layer, _GATE].float()
    if not out.any():
        return bias
    if not manifest.has_norm or tensors["boundary.norm_weight"].any():
        return None
    hidden = (
        tensors["boundary.update_in"][layer, _GATE].float() @ tensors["boundary.norm_bias"].float()
    )
    if manifest.has_update_bias:
        hidden = hidden + tensors["boundary.update_in_bias"][layer, _GATE].float()
    active = F.silu(hidden) if manifest.activation == "silu" else F.gelu(hidden)
    return active @ out + bias
