"""Oracle of `decode_attention`: fp64, a sequence at a time. For tests only."""

from __future__ import annotations

import torch


def decode_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return (T, H, D) fp64; zeros for sequences without tokens."""
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    page_size, num_kv_heads = key_cache.shape[1:3]
    group_size = query.shape[1] // num_kv_heads
    for number, length in enumerate(seq_lens[: len(query)].tolist()):
        if length == 0:
            continue
        pages = block_table[number, : -(-length // page_size)].long()
        keys, values = (
            cache[pages].flatten(0, 1)[:length].double().repeat_interleave(group_size, 1)
            for cache in (key_cache, value_cache)
        )
        scores = torch.einsum("hd,nhd->hn", query[number].double(), keys) * scale
        out[number] = torch.einsum("hn,nhd->hd", scores.softmax(1), values)
    return out
