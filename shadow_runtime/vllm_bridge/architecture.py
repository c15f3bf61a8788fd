"""The in-tree architectures that can carry a shadow path.

Runs in: API process | engine core | GPU worker. Imports nothing of vLLM: the plugin's entry point reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shadow_runtime.errors import UnsupportedStackError


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to reach the decoder layers of an in-tree architecture.

    Attributes:
        module: module under `vllm.model_executor.models`.
        inner: attribute of the causal-LM class that holds the transformer.
        layers: attribute of the transformer that holds the decoder layers.
        stream: `pending` when a layer takes (positions, hidden, residual) and leaves the last addition to the next
            norm; `whole` when it takes and returns one hidden tensor.
    """

    module: str
    inner: str = "model"
    layers: str = "layers"
    stream: Literal["pending", "whole"] = "pending"


ARCHITECTURES = {
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "LlamaForCausalLM": Architecture("llama"),
    "MistralForCausalLM": Architecture("mistral"),
    "Gemma2ForCausalLM": Architecture("gemma2"),
    "Gemma3ForCausalLM": Architecture("gemma3"),
    "GPT2LMHeadModel": Architecture("gpt2", inner="transformer", layers="h", stream="whole"),
}


def check_architectures(names: list[str]) -> None:
    """Raise UnsupportedStackError, listing what is supported, unless one of a model's architectures is."""
    if not any(name in ARCHITECTURES for name in names):
        raise UnsupportedStackError(
            f"architecture {', '.join(names) or 'unknown'} has no shadow path; supported are {', '.join(ARCHITECTURES)}"
        )
