"""Verify both operators on this machine's GPU against the fp64 oracles, then time them. Prints JSON lines.

    PYTHONPATH=kernels python kernels/benchmarks/verify_gpu.py [--quick] [--no-timing]

Needs torch with CUDA and Triton, numpy, nothing else. Exit code 1 if a check failed; times of a version that failed
its checks are not printed. Times are of CUDA graphs that hold many calls over different layers' weights, so weights
come from memory as in a real step, unless a step's whole set fits the cache: `rotation_mib` says how much rotates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import triton

from shadow_kernels import BoundaryWeights, StepSegments, boundary_, slot_linear
from shadow_kernels.ops.slot_linear.reference import slot_linear_reference
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    BoundaryCase,
    assert_close,
    assert_same_bits,
    make_boundary_case,
    popularity_slots,
)

DEVICE = "cuda"
NUM_SLOTS = 32
NUM_TOKENS = (1, 8, 32, 128, 2048)
ROTATION_BYTES = 256 << 20  # several times the L2 cache of any current GPU
MAX_GRAPH_CALLS = 256


def emit(**record: object) -> None:
    print(json.dumps(record), flush=True)


def boundary_checks(
    hidden_sizes: tuple[int, ...],
) -> Iterator[tuple[dict[str, object], Callable[[], float]]]:
    for hidden_size in hidden_sizes:
        for dtype in TOLERANCE:
            for index, num_tokens in enumerate(NUM_TOKENS):
                popularity = ("distinct", "uniform", "base_mixed", "zipf", "skewed")[index]
                sizes = {
                    "hidden_size": hidden_size,
                    "rank": (16, 10)[index % 2],
                    "gate_size": (8, 10)[index % 2],
                }
                yield _boundary_check(popularity, num_tokens, dtype, sizes, has_residual=index != 3)
    for popularity in POPULARITIES:
        yield _boundary_check(
            popularity, 133, torch.bfloat16, {"hidden_size": 1024}, has_residual=True
        )
    for rank, gate_size in ((4, 3), (64, 64)):
        sizes = {"hidden_size": 8192, "rank": rank, "gate_size": gate_size}
        yield _boundary_check("uniform", 40, torch.bfloat16, sizes, has_residual=True)


def _boundary_check(
    popularity: str,
    num_tokens: int,
    dtype: torch.dtype,
    sizes: dict[str, int],
    *,
    has_residual: bool,
) -> tuple[dict[str, object], Callable[[], float]]:
    def check() -> float:
        slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=num_tokens)
        case = make_boundary_case(
            slots,
            num_adapter_slots=NUM_SLOTS,
            dtype=dtype,
            has_residual=has_residual,
            device=DEVICE,
            **sizes,
        )
        case.segments.check_integrity()
        return case.assert_correct(case.run(), case.expected())

    label = {
        "op": "boundary_",
        "num_tokens": num_tokens,
        "popularity": popularity,
        "dtype": str(dtype),
    }
    return {**label, **sizes}, check


def slot_linear_checks(
    shapes: tuple[tuple[int, int], ...],
) -> Iterator[tuple[dict[str, object], Callable[[], float]]]:
    for num_inputs, num_outputs in shapes:
        for dtype in TOLERANCE:
            for index, num_tokens in enumerate(NUM_TOKENS):
                yield _slot_linear_check((num_inputs, num_outputs), num_tokens, dtype, index)


def _slot_linear_check(
    shape: tuple[int, int], num_tokens: int, dtype: torch.dtype, index: int
) -> tuple[dict[str, object], Callable[[], float]]:
    num_inputs, num_outputs = shape
    first_slot, num_class_slots = ((0, NUM_SLOTS), (20, 12))[index % 2]

    def check() -> float:
        torch.manual_seed(index)
        slots = popularity_slots("uniform", num_tokens, NUM_SLOTS, seed=index)
        segments = StepSegments(num_tokens, NUM_SLOTS, DEVICE)
        segments.fill(slots)
        x = torch.randn(num_tokens, num_inputs, device=DEVICE).to(dtype)
        weight = torch.randn(num_class_slots, num_outputs, num_inputs, device=DEVICE)
        weight = (weight * num_inputs**-0.5).to(dtype)
        bias = (
            torch.randn(num_class_slots, num_outputs, device=DEVICE).to(dtype)
            if index % 2
            else None
        )
        out = slot_linear(x, weight, bias, segments.grouping, first_slot)
        expected = slot_linear_reference(x, weight, bias, torch.from_numpy(slots), first_slot)
        return assert_close(out, expected, "out")

    label = {
        "op": "slot_linear",
        "num_tokens": num_tokens,
        "dtype": str(dtype),
        "has_bias": bool(index % 2),
    }
    return {**label, "K": num_inputs, "N": num_outputs, "first_slot": first_slot}, check


def capture(body: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()  # compiles before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def graph_check() -> float:
    """Capture once, then replay over steps with other slots, fewer tokens and none: each must equal the oracle."""
    num_tokens = 32
    steps = [popularity_slots(name, num_tokens, NUM_SLOTS, seed=7) for name in POPULARITIES]
    every_slot = np.arange(num_tokens, dtype=np.int32)
    case = make_boundary_case(
        every_slot,
        num_adapter_slots=NUM_SLOTS,
        hidden_size=1024,
        dtype=torch.bfloat16,
        device=DEVICE,
    )
    hidden, state = case.hidden.clone(), case.state.clone()
    grouping = case.segments.grouping
    up = case.weights.up.contiguous()
    linear: dict[str, torch.Tensor] = {}

    def body() -> None:
        boundary_(hidden, case.residual, state, grouping, case.weights)
        linear["out"] = slot_linear(case.residual, up, None, grouping)

    graph = capture(body)
    worst = 0.0
    for slots in [*steps, np.full(num_tokens, -1, np.int32)]:
        case.segments.fill(slots)
        hidden.copy_(case.hidden)
        state.copy_(case.state)
        graph.replay()
        step = BoundaryCase(
            case.hidden, case.residual, case.state, slots, case.segments, case.weights
        )
        worst = max(worst, step.assert_correct((hidden, state), step.expected()))
        # slots 5, 11, ... have no injection, so their `up` is poison: compare the others
        sound = torch.from_numpy(slots[[slot < 0 or bool(_flag(slot) & 1) for slot in slots]])
        rows = torch.tensor([slot < 0 or bool(_flag(slot) & 1) for slot in slots], device=DEVICE)
        expected = slot_linear_reference(case.residual[rows], up, None, sound, 0)
        worst = max(worst, assert_close(linear["out"][rows], expected, "slot_linear in a graph"))
    return worst


def _flag(slot: int) -> int:
    return MIXED_FLAGS[slot % len(MIXED_FLAGS)]


def empty_graph_check() -> float:
    """A graph captured without adapter tokens holds no shadow kernel: replaying it over others changes nothing."""
    case = make_boundary_case(np.full(8, -1, np.int32), num_adapter_slots=4, device=DEVICE)
    hidden, state = torch.ones_like(case.hidden), torch.ones_like(case.state)
    graph = capture(
        lambda: boundary_(hidden, case.residual, state, case.segments.grouping, case.weights)
    )
    case.segments.fill(np.zeros(8, np.int32))
    graph.replay()
    assert_same_bits(hidden, torch.ones_like(hidden), "hidden")
    assert_same_bits(state, torch.ones_like(state), "state")
    return 0.0


def refill_check() -> float:
    """Steps filled back to back, without waiting for the device, arrive in order."""
    segments = StepSegments(4096, NUM_SLOTS, DEVICE)
    steps = [popularity_slots("uniform", 4096, NUM_SLOTS, seed=seed) for seed in range(20)]
    seen = []
    for slots in steps:
        segments.fill(slots)
        seen.append(segments.adapter_slots.clone())
    for slots, copy in zip(steps, seen, strict=True):
        assert_same_bits(copy.cpu(), torch.from_numpy(slots), "adapter_slots")
    segments.check_integrity()
    return 0.0


def verify(*, quick: bool) -> bool:
    hidden_sizes = (4096,) if quick else (896, 1000, 4096)
    shapes = ((1000, 333),) if quick else ((4096, 512), (256, 4096), (1000, 333))
    extra = {
        "cuda_graph": graph_check,
        "empty_cuda_graph": empty_graph_check,
        "refill": refill_check,
    }
    checks = [*boundary_checks(hidden_sizes), *slot_linear_checks(shapes)]
    checks += [({"check": name}, function) for name, function in extra.items()]
    num_failed = 0
    for label, check in checks:
        try:
            emit(kind="verify", passed=True, **label, worst_row_error=check())
        except Exception as error:  # report every failure, then exit with 1
            num_failed += 1
            emit(
                kind="verify", passed=False, **label, error=f"{type(error).__name__}: {error}"[:500]
            )
    emit(kind="verify_total", num_checks=len(checks), num_failed=num_failed)
    return not num_failed


def time_graph(body: Callable[[int], None], num_calls: int) -> float:
    """Return microseconds per call: median over replays of a graph that holds `num_calls` calls."""

    def calls() -> None:
        for call in range(num_calls):
            body(call)

    graph = capture(calls)
    times = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / num_calls)
    return statistics.median(times[5:])


def num_rotating(bytes_per_call: int) -> int:
    return max(4, min(MAX_GRAPH_CALLS, ROTATION_BYTES // bytes_per_call))


def time_boundary(
    num_tokens: int, num_adapters: int, hidden_size: int, bytes_per_second: float
) -> None:
    rank, gate_size, dtype = 16, 8, torch.bfloat16
    num_rows = 4 * gate_size + 2 * rank + 2
    num_active = min(num_adapters, num_tokens)
    weight_bytes = num_active * num_rows * hidden_size * 2
    num_layers = num_rotating(weight_bytes)
    stack = (
        torch.randn(num_adapters, num_layers, num_rows, hidden_size, device=DEVICE, dtype=dtype)
        * 0.02
    )
    segments = StepSegments(num_tokens, num_adapters, DEVICE)
    segments.fill((np.arange(num_tokens) % num_adapters).astype(np.int32))
    layers = [_layer(stack[:, layer], gate_size, rank) for layer in range(num_layers)]
    hidden, residual, state = (
        torch.randn(num_tokens, hidden_size, device=DEVICE, dtype=dtype) for _ in range(3)
    )
    us = time_graph(
        lambda call: boundary_(hidden, residual, state, segments.grouping, layers[call]), num_layers
    )
    moved = weight_bytes + 5 * num_tokens * hidden_size * 2
    report_time("boundary_", us, moved, bytes_per_second, num_tokens, num_adapters, num_layers * weight_bytes,
                {"hidden_size": hidden_size, "rank": rank, "gate_size": gate_size})  # fmt: skip


def _layer(rows: torch.Tensor, gate_size: int, rank: int) -> BoundaryWeights:
    """Cut one layer's (A, rows, D) block into the operator's tensors, as strided views."""
    num_adapters, _, hidden_size = rows.shape
    norm_weight, norm_bias, update_in, update_out, down, up = rows.split(
        [1, 1, 2 * gate_size, 2 * gate_size, rank, rank], 1
    )
    update = (num_adapters, 2, gate_size, hidden_size)
    no_bias = rows.new_zeros(num_adapters, 2, hidden_size)
    return BoundaryWeights(
        torch.full((num_adapters,), PAPER_FLAGS, dtype=torch.int32, device=DEVICE),
        torch.full((num_adapters,), 0.1, device=DEVICE),
        norm_weight[:, 0], norm_bias[:, 0], update_in.unflatten(1, update[1:3]), no_bias[:, :, :gate_size].contiguous(),
        update_out.unflatten(1, update[1:3]), no_bias, down, up,
    )  # fmt: skip


def time_slot_linear(
    num_tokens: int, num_adapters: int, shape: tuple[int, int], bytes_per_second: float
) -> None:
    num_inputs, num_outputs = shape
    num_active = min(num_adapters, num_tokens)
    weight_bytes = num_active * num_inputs * num_outputs * 2
    num_layers = num_rotating(weight_bytes)
    weights = [
        torch.randn(num_adapters, num_outputs, num_inputs, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(num_layers)
    ]
    segments = StepSegments(num_tokens, num_adapters, DEVICE)
    segments.fill((np.arange(num_tokens) % num_adapters).astype(np.int32))
    x = torch.randn(num_tokens, num_inputs, device=DEVICE, dtype=torch.bfloat16)
    us = time_graph(lambda call: slot_linear(x, weights[call], None, segments.grouping), num_layers)
    dense = time_graph(lambda call: torch.nn.functional.linear(x, weights[call][0]), num_layers)
    moved = weight_bytes + num_tokens * (num_inputs + 2 * num_outputs) * 2
    extra = {
        "K": num_inputs,
        "N": num_outputs,
        "one_dense_linear_us": round(dense, 2),
        "ratio_to_dense": us / dense,
    }
    report_time(
        "slot_linear",
        us,
        moved,
        bytes_per_second,
        num_tokens,
        num_adapters,
        num_layers * weight_bytes,
        extra,
    )


def report_time(
    op: str, us: float, moved: int, bytes_per_second: float, num_tokens: int, num_adapters: int, rotation: int,
    extra: dict[str, object],
) -> None:  # fmt: skip
    ideal = moved / bytes_per_second * 1e6
    emit(kind="time", op=op, dtype="bf16", num_tokens=num_tokens, num_adapters=num_adapters, **extra,
         median_us=round(us, 2), gb_per_second=round(moved / us / 1e3, 1), ideal_us=round(ideal, 2),
         ratio_to_ideal=round(us / ideal, 2), rotation_mib=rotation >> 20)  # fmt: skip


def copy_bandwidth() -> float:
    """Return bytes per second, read and written, of a large device copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    us = time_graph(lambda call: target.copy_(source), 4)
    return 2 * source.numel() / us * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one hidden size and one linear shape")
    parser.add_argument("--no-timing", action="store_true", help="verify only")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    emit(kind="environment", gpu=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__,
         cuda=torch.version.cuda, python=sys.version.split()[0])  # fmt: skip
    if not verify(quick=options.quick):
        return 1
    if options.no_timing:
        return 0
    bandwidth = copy_bandwidth()
    emit(kind="bandwidth", gb_per_second=round(bandwidth / 1e9))
    for num_tokens, num_adapters in (
        (1, 1),
        (8, 1),
        (8, 8),
        (32, 1),
        (32, 8),
        (32, 32),
        (128, 32),
        (2048, 1),
        (2048, 32),
    ):
        for hidden_size in (1024, 4096):
            time_boundary(num_tokens, num_adapters, hidden_size, bandwidth)
        for shape in ((4096, 512), (4096, 2048), (256, 4096)):
            time_slot_linear(num_tokens, num_adapters, shape, bandwidth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
