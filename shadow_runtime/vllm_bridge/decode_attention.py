"""Attention of pure decode steps by our own kernel; everything else stays vLLM's FlashAttention.

Runs in: GPU worker.

FlashAttention 3 gives a block of a multiprocessor's size to each sequence and head, which for contexts of some hundred
tokens waits more than it reads. Ours has small blocks that hide each other's waits (`ops/decode_attention`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl

import shadow_kernels
from shadow_runtime.vllm_bridge.decode_kernels import rounds_like_its_compiler


def replace_attention(module: nn.Module, vllm_config: VllmConfig) -> None:
    """Let steps of one token a request have our attention wherever a module's is vLLM's FlashAttention.

    Args:
        module: with its attention layers built, on their device.
        vllm_config: the engine's.

    Windows, soft caps, sinks, position biases, quantised caches and sharded contexts stay vLLM's. An operator who names
    an attention backend (`--attention-backend FLASH_ATTN`) has vLLM's, too.
    """
    if not rounds_like_its_compiler(vllm_config):
        return
    attention = vllm_config.attention_config
    if attention.backend is not None or attention.backend_per_kind:
        return
    device = torch.device(vllm_config.device_config.device_type)
    for layer in module.modules():
        if isinstance(layer, Attention) and _is_plain(layer.impl):
            _replace(layer, device)


def _is_plain(impl: Any) -> bool:
    return (
        type(impl) is FlashAttentionImpl
        and impl.attn_type == AttentionType.DECODER
        and impl.sliding_window == (-1, -1)
        and not impl.logits_soft_cap
        and impl.alibi_slopes is None
        and impl.sinks is None
        and not is_quantized_kv_cache(impl.kv_cache_dtype)
        and impl.total_cp_world_size == 1
    )


def _replace(layer: Any, device: torch.device) -> None:
    impl = layer.impl
    if shadow_kernels.has_fast_decode_attention(
        device.type, layer.dtype, impl.num_heads, impl.num_kv_heads, impl.head_size
    ):
        impl.__class__ = DecodeAttentionImpl
        # a buffer, so that it is zero again when vLLM wakes up from a sleep
        arrivals = shadow_kernels.new_arrivals(device)
        layer.register_buffer("decode_arrivals", arrivals, persistent=False)


def is_plain_decode(metadata: Any) -> bool:
    """Whether a step has one token a request, which attends to all tokens before it.

    While a CUDA graph is captured, the metadata say what its steps can have at most.
    """
    return (
        metadata is not None
        and metadata.max_query_len == 1
        and metadata.causal is True
        and metadata.mm_prefix_query_range_tensor is None
        and metadata.rswa_prefix_lens is None
    )


class DecodeAttentionImpl(FlashAttentionImpl):
    """FlashAttention whose steps of one token a request are our kernel's."""

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend; arguments and result are FlashAttention's."""
        if is_plain_decode(attn_metadata):
            num_tokens = attn_metadata.num_actual_tokens
            key_cache, value_cache = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
            tensors = query[:num_tokens], key_cache, value_cache, output[:num_tokens]
            if shadow_kernels.takes_decode_attention(*tensors):
                self._decode(layer, *tensors, attn_metadata)
                return output
        return super().forward(
            layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
        )

    def _decode(
        self,
        layer: Any,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        out: torch.Tensor,
        metadata: Any,
    ) -> None:
        shadow_kernels.decode_attention(
            query, key_cache, value_cache, metadata.block_table, metadata.seq_lens, self.scale, out,
            layer.decode_arrivals,
        )  # fmt: skip
