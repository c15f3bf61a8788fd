"""Verify `slot_linear` against the oracle at every shape, then time launch configurations. Prints JSON lines.

    PYTHONPATH=kernels python kernels/benchmarks/slot_linear.py [--output FILE] [--tokens N ...] [--few] [--commit ID]

Times are microseconds a call inside CUDA graphs over many layers' weights, more than the cache holds, so that weights
come from memory as in a step. Beside the configurations stand `chosen` (what `choose_config` says), `dense` (one
product of all tokens with one weight, which is what a base layer of that shape costs) and `grouped_mm` (PyTorch's
grouped product over rows that are already sorted by slot, gather and scatter not counted).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from boundary import DEVICE, MAX_GRAPH_CALLS, ROTATION_BYTES, environment, report, time_graph

from shadow_kernels import StepSegments, slot_linear
from shadow_kernels.ops.slot_linear import cuda, triton
from shadow_kernels.ops.slot_linear.config import SlotLinearConfig, choose_config
from shadow_kernels.ops.slot_linear.cuda import CUTS, Cut
from shadow_kernels.ops.slot_linear.reference import slot_linear_reference
from shadow_kernels.testing import assert_close, popularity_slots

DTYPE = torch.bfloat16
NUM_VERIFIED_ROWS = 256  # the oracle goes token by token

# Qwen3-8B with the paper's backbone of 8 heads and an MLP of 256: qkv, o, up, down as (inputs, outputs).
PROJECTIONS = [(4096, 3072), (1024, 4096), (4096, 512), (256, 4096)]
BATCHES = [
    (1, 1),
    (8, 8),
    (8, 1),
    (32, 32),
    (32, 1),
    (64, 64),
    (128, 1),
    (128, 32),
    (256, 32),
    (512, 8),
    (512, 32),
    (2048, 2),
    (2048, 32),
    (8192, 8),
]

DECODE = [
    SlotLinearConfig(16, block_n, block_k, num_warps, num_stages)
    for block_n, block_k, num_warps, num_stages in (
        (16, 128, 4, 4), (16, 128, 4, 6), (16, 256, 4, 4), (16, 256, 8, 3),
        (32, 128, 4, 4), (32, 128, 4, 6), (32, 256, 4, 3), (32, 256, 8, 4), (64, 128, 4, 4),
    )
]  # fmt: skip
MEDIUM = [
    SlotLinearConfig(block_m, block_n, block_k, num_warps, num_stages)
    for block_m, block_n, block_k, num_warps, num_stages in (
        (16, 32, 256, 4, 3), (16, 64, 128, 4, 4), (32, 32, 128, 4, 4), (32, 64, 128, 4, 4), (64, 32, 128, 4, 4),
        (64, 32, 256, 4, 3), (64, 64, 128, 4, 4), (64, 64, 128, 8, 4), (64, 128, 128, 8, 3), (128, 32, 128, 4, 4),
        (128, 64, 128, 8, 3),
    )
]  # fmt: skip
PREFILL = [
    SlotLinearConfig(block_m, block_n, block_k, num_warps, num_stages)
    for block_m, block_n, block_k, num_warps, num_stages in (
        (16, 64, 128, 4, 3), (32, 64, 128, 4, 3), (64, 64, 64, 4, 4), (64, 128, 64, 4, 4), (64, 128, 128, 8, 3),
        (64, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3),
    )
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the result."""

    num_tokens: int
    num_adapters: int
    num_inputs: int
    num_outputs: int

    @property
    def weight_bytes(self) -> int:
        """Of the slots that have tokens, of one layer."""
        num_active = min(self.num_adapters, self.num_tokens)
        return num_active * self.num_inputs * self.num_outputs * DTYPE.itemsize

    def candidates(self, is_full: bool) -> list[SlotLinearConfig | Cut]:
        """Return what is worth a try; of Triton's configurations all, or the chosen one alone."""
        chosen = choose_config(self.num_tokens, self.num_inputs, self.num_outputs, DTYPE)
        programs = (
            DECODE if self.num_tokens <= 64 else MEDIUM if self.num_tokens <= 512 else PREFILL
        )
        has_cuts = self.num_tokens <= cuda.MAX_TOKENS and cuda.can_run_on("cuda")
        return [
            *(CUTS if has_cuts else []),
            *(programs if is_full else [chosen]),
        ]


def launch(
    config: SlotLinearConfig | Cut, x: torch.Tensor, weight: torch.Tensor, segments: StepSegments
) -> torch.Tensor:
    if isinstance(config, Cut):
        return cuda.launch(x, weight, None, None, 1, segments.grouping, 0, config)
    return triton.launch(x, weight, None, None, 1, segments.grouping, 0, config)


def name_of(config: SlotLinearConfig | Cut) -> str:
    if isinstance(config, Cut):
        return f"{config.num_groups}x{config.num_octets}"
    sizes = (config.block_m, config.block_n, config.block_k, config.num_warps, config.num_stages)
    return "x".join(map(str, sizes))


def verify(shape: Shape, is_full: bool) -> dict[str, float]:
    """Return each configuration's worst row's error; raises where it is wrong."""
    slots = popularity_slots(
        "base_mixed", shape.num_tokens, shape.num_adapters, seed=shape.num_tokens
    )
    segments = StepSegments(shape.num_tokens, shape.num_adapters, DEVICE)
    segments.fill(slots)
    x = torch.randn(shape.num_tokens, shape.num_inputs, device=DEVICE).to(DTYPE)
    size = (shape.num_adapters, shape.num_outputs, shape.num_inputs)
    weight = (torch.randn(size, device=DEVICE) * shape.num_inputs**-0.5).to(DTYPE)
    rows = np.random.default_rng(0).permutation(shape.num_tokens)[:NUM_VERIFIED_ROWS]
    expected = slot_linear_reference(x[rows], weight, None, torch.from_numpy(slots[rows]), 0)
    errors = {}
    for config in shape.candidates(is_full):
        out = launch(config, x, weight, segments)
        errors[name_of(config)] = assert_close(out[rows], expected, name_of(config))
    return errors


def grouped_mm(
    x: torch.Tensor, weights: list[torch.Tensor], segments: StepSegments
) -> Callable[[int], object]:
    ends = segments.slot_starts[1:].contiguous()
    return lambda call: torch._grouped_mm(x, weights[call].transpose(1, 2), offs=ends)


def measure(shape: Shape, is_full: bool) -> dict[str, float]:
    """Return microseconds a call by configuration."""
    num_layers = max(2, min(MAX_GRAPH_CALLS, ROTATION_BYTES // shape.weight_bytes))
    size = (shape.num_adapters, shape.num_outputs, shape.num_inputs)
    weights = [torch.randn(size, device=DEVICE, dtype=DTYPE) * 0.02 for _ in range(num_layers)]
    segments = StepSegments(shape.num_tokens, shape.num_adapters, DEVICE)
    segments.fill((np.arange(shape.num_tokens) % shape.num_adapters).astype(np.int32))
    x = torch.randn(shape.num_tokens, shape.num_inputs, device=DEVICE, dtype=DTYPE)

    def run(config: SlotLinearConfig | Cut) -> Callable[[int], object]:
        return lambda call: launch(config, x, weights[call], segments)

    def run_extents(num_rows: int, num_columns: int) -> Callable[[int], object]:
        extents = torch.tensor([[num_rows, num_columns]] * shape.num_adapters, device=DEVICE).int()
        return lambda call: slot_linear(x, weights[call], None, segments.grouping, extents=extents)

    whole = (shape.num_outputs, shape.num_inputs)
    bodies: dict[str, Callable[[int], object]] = {
        "dense": lambda call: torch.nn.functional.linear(x, weights[call][0]),
        "chosen": lambda call: slot_linear(x, weights[call], None, segments.grouping),
        "whole_extents": run_extents(*whole),
        "quarter_of_rows": run_extents(whole[0] // 4, whole[1]),
        "quarter_of_columns": run_extents(whole[0], whole[1] // 4),
        "no_rows": run_extents(0, whole[1]),
        "grouped_mm": grouped_mm(x, weights, segments),
    }
    bodies |= {name_of(config): run(config) for config in shape.candidates(is_full)}
    times = {}
    for name, body in bodies.items():
        try:
            times[name] = round(time_graph(body, num_layers), 2)
        except (
            RuntimeError,
            NotImplementedError,
        ) as error:  # a shape that grouped_mm does not take
            print(json.dumps({"shape": str(shape), "candidate": name, "error": str(error)[:300]}))
    return times


def row_of(shape: Shape, bytes_per_us: float, is_full: bool) -> dict[str, object]:
    errors, times = verify(shape, is_full), measure(shape, is_full)
    configs = {name: times[name] for name in errors if name in times}
    best = min(configs, key=configs.__getitem__)
    return {
        "num_tokens": shape.num_tokens, "num_adapters": shape.num_adapters,
        "K": shape.num_inputs, "N": shape.num_outputs,
        "ideal_us": round(shape.weight_bytes / bytes_per_us, 2),
        "best": best, "best_us": times[best], "chosen_us": times["chosen"], "dense_us": times["dense"],
        "grouped_mm_us": times.get("grouped_mm"), "worst_row_error": float(f"{max(errors.values()):.2e}"), "all": times,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write all rows as one JSON document")
    parser.add_argument("--tokens", nargs="+", type=int, help="only batches of these many tokens")
    parser.add_argument(
        "--few", action="store_true", help="of Triton's configurations only the chosen"
    )
    parser.add_argument("--commit", default="unknown", help="what is measured")
    options = parser.parse_args()
    facts = environment(options.commit)
    bytes_per_us = facts["copy_gb_per_second"] * 1e3  # type: ignore[operator]
    rows = (
        row_of(Shape(*batch, *projection), bytes_per_us, not options.few)
        for batch in BATCHES
        if not options.tokens or batch[0] in options.tokens
        for projection in PROJECTIONS
    )
    report(facts, rows, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
