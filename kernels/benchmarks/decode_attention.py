"""Verify, then time `decode_attention` beside FlashAttention 3 as vLLM calls it in a CUDA graph.

    python kernels/benchmarks/decode_attention.py [--output FILE] [--commit NAME]

Needs an NVIDIA GPU of compute capability 9.0, the built library and vLLM. Prints one JSON object a line: us of a call,
launch behind launch, over caches that take turns, so that keys and values come from memory; and what reading them takes
at the bandwidth of a large copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from boundary import environment, report, time_graph
from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

from shadow_kernels import decode_attention
from shadow_kernels.dispatch import new_arrivals
from shadow_kernels.ops.decode_attention import cuda
from shadow_kernels.testing import assert_close
from shadow_kernels.testing_attention import DecodeCase, Sizes, make_decode_case

SIZES = {
    "qwen3-8b": Sizes(32, 8, 128), "qwen3-0.6b": Sizes(16, 8, 128), "qwen2.5-7b": Sizes(28, 4, 128),
    "llama-3.2-1b": Sizes(32, 8, 64),
}  # fmt: skip
BATCHES: dict[str, list[int]] = {
    "1 of 130": [130],
    "1 of 1000": [1000],
    "1 of 8000": [8000],
    "8 of 130": [130] * 8,
    "8 of 8000": [8000] * 8,
    "32 of 130": [130] * 32,
    "32 of 1000": [1000] * 32,
    "128 of 130": [130] * 128,
    "128 of 66 to 194": [66 + number for number in range(128)],
    "128 of 1000": [1000] * 128,
    "127 of 130 and one of 30000": [130] * 100 + [30000] + [130] * 27,
    "512 of 130": [130] * 512,
}
OTHER_BATCHES = ("1 of 130", "32 of 130", "128 of 130", "128 of 1000")  # of models but the first
MAX_MODEL_LEN = 40960
MAX_SPLITS = 32  # vLLM's default in CUDA graphs
LEAST_BYTES = 400 << 20  # of the caches that calls take in turn, several times the L2 cache


def cache_bytes(lengths: Sequence[int], sizes: Sizes) -> int:
    """Return what a call reads of keys and values."""
    return sum(lengths) * sizes.num_kv_heads * sizes.head_size * 2 * 2


def own(cases: list[DecodeCase], out: torch.Tensor) -> Callable[[int], object]:
    """Return our operator as the body of a graph."""
    arrivals = new_arrivals(out.device)
    return lambda call: decode_attention(*cases[call % len(cases)].arguments, out, arrivals)


def flash_attention(cases: list[DecodeCase], out: torch.Tensor) -> Callable[[int], object]:
    """Return vLLM's call of FlashAttention 3 in a full CUDA graph."""
    num_tokens, num_heads, head_size = out.shape
    starts = torch.arange(num_tokens + 1, dtype=torch.int32, device=out.device)
    lengths = cases[0].seq_lens[:num_tokens].contiguous()
    metadata = get_scheduler_metadata(
        batch_size=num_tokens, max_seqlen_q=1, max_seqlen_k=MAX_MODEL_LEN, num_heads_q=num_heads,
        num_heads_kv=cases[0].key_cache.shape[2], headdim=head_size, cache_seqlens=lengths, qkv_dtype=out.dtype,
        cu_seqlens_q=starts, page_size=cases[0].key_cache.shape[1], causal=True, window_size=(-1, -1),
        num_splits=MAX_SPLITS,
    )  # fmt: skip

    def run(call: int) -> None:
        case = cases[call % len(cases)]
        flash_attn_varlen_func(
            q=case.query, k=case.key_cache, v=case.value_cache, out=out, cu_seqlens_q=starts, max_seqlen_q=1,
            seqused_k=lengths, max_seqlen_k=MAX_MODEL_LEN, softmax_scale=case.scale, causal=True,
            window_size=[-1, -1], block_table=case.block_table[:num_tokens], scheduler_metadata=metadata,
            fa_version=3, num_splits=MAX_SPLITS,
        )  # fmt: skip

    return run


def measure(model: str, batch: str, bandwidth: float) -> dict[str, object]:
    """Return one result: worst errors, times, and the ideal time at a bandwidth of GB/s."""
    lengths, sizes = BATCHES[batch], SIZES[model]
    num_bytes = cache_bytes(lengths, sizes)
    num_cases = min(24, LEAST_BYTES // num_bytes + 2)
    cases = [make_decode_case(lengths, sizes, device="cuda", seed=n) for n in range(num_cases)]
    out = torch.empty_like(cases[0].query)
    expected = cases[0].expected().flatten(1)
    row: dict[str, object] = {
        "model": model,
        "batch": batch,
        "ideal_us": round(num_bytes / bandwidth / 1e3, 1),
    }
    for name, body in (("flash_attention", flash_attention(cases, out)), ("own", own(cases, out))):
        body(0)
        error = assert_close(out.flatten(1), expected, name)
        row[f"{name}_us"] = round(time_graph(body, max(8, num_cases)), 1)
        row[f"{name}_error"] = float(f"{error:.2e}")
    return row


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write all rows as one JSON document")
    parser.add_argument("--commit", default="unknown", help="what is measured")
    options = parser.parse_args()
    if not cuda.can_run_on("cuda"):
        parser.error("no compute capability 9.0, or not built: python -m shadow_kernels.build")
    facts = environment(options.commit)
    rows = (
        measure(model, batch, facts["copy_gb_per_second"])
        for model in SIZES
        for batch in (BATCHES if model == next(iter(SIZES)) else OTHER_BATCHES)
    )
    report(facts, rows, options.output)


if __name__ == "__main__":
    main()
