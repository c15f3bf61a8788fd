"""The model classes as vLLM's registry knows them.

Runs in: API process | engine core | GPU worker.

Before an engine starts, vLLM asks what a model class can do. It asks a process of its own that imports the class, and
with it torch and vLLM again, which takes about as long as importing them did. The answer for all classes of ours is the
same and known, so it is given at once; the worker, which imports the class anyway, checks it.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from vllm.model_executor.models.registry import (
    ModelRegistry,
    _LazyRegisteredModel,
    _ModelInfo,
)

from shadow_runtime.errors import UnsupportedStackError

if TYPE_CHECKING:
    from torch import nn

_MODULE = "shadow_runtime.vllm_bridge.models"
# What `_ModelInfo` says of a decoder that writes text and can be cut into pipeline stages, and of nothing else.
_TEXT_DECODER = {
    "is_text_generation_model": True,
    "is_pooling_model": False,
    "attn_type": "decoder",
    "default_seq_pooling_type": "LAST",
    "default_tok_pooling_type": "ALL",
    "score_type": "bi-encoder",
    "supports_multimodal": False,
    "supports_multimodal_raw_input_only": False,
    "requires_raw_input_tokens": False,
    "supports_multimodal_encoder_tp_data": False,
    "supports_pp": True,
    "supports_hc_sp": False,
    "has_inner_state": False,
    "is_attention_free": False,
    "is_hybrid": False,
    "has_noops": False,
    "supports_mamba_prefix_caching": False,
    "supports_replayssm": False,
    "supports_transcription": False,
    "supports_transcription_only": False,
    "supported_video_pruning_methods": (),
    "supports_mm_device_do_normalize": False,
}
_NAMES = {field.name for field in fields(_ModelInfo)}


class TextDecoder(_LazyRegisteredModel):
    """A class of ours that nobody has imported yet, with what vLLM will ask of it."""

    def inspect_model_cls(self) -> _ModelInfo:
        """Return what the class can do without importing it."""
        if {"architecture", *_TEXT_DECODER} != _NAMES:
            # A release of vLLM that asks something else is answered its own way.
            return super().inspect_model_cls()
        return _ModelInfo(architecture=self.class_name, **_TEXT_DECODER)

    def load_model_cls(self) -> type[nn.Module]:
        """Import the class; raises UnsupportedStackError when it is not what was said of it."""
        loaded = super().load_model_cls()
        said, is_so = asdict(self.inspect_model_cls()), asdict(_ModelInfo.from_model_cls(loaded))
        if said != is_so:
            raise UnsupportedStackError(
                f"{self.class_name} is not the model that was announced to vLLM: {_differences(said, is_so)}"
            )
        return loaded


def register_text_decoder(architecture: str) -> None:
    """Have vLLM build our class wherever a model names this in-tree architecture."""
    ModelRegistry.models[architecture] = TextDecoder(_MODULE, f"Shadow{architecture}")


def _differences(said: dict[str, Any], is_so: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} is {is_so[name]!r}, not {said[name]!r}"
        for name in said
        if said[name] != is_so[name]
    )
