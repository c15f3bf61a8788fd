"""Verify `boundary_` against the oracle at every shape, then time its backends side by side. Prints JSON lines.

    PYTHONPATH=kernels python kernels/benchmarks/boundary.py [--output FILE] [--backends triton cuda] [--quick]
                                                             [--layout slots|layers|packed]

Three times a shape, all inside CUDA graphs over many layers' weights, more than the cache holds, so that weights come
from memory as in a step:

    alone_us    launches of the operator one behind the other; a launch that overlaps its predecessor looks better
    beside_us   what the operator adds to a chain of dense products that write its `hidden`, one before each launch;
                launch and drain included
    layer_us    the same behind the four products of a layer as Qwen3-8B has them, 0.4 GB, other ones each time, as in a
                step: what a step leaves of the operator in caches (lists, instructions, addresses of pages) is left
                here, and it starts behind the kernels that it starts behind there

Percent is of the bandwidth of a large device copy, counted over the bytes that an ideal operator moves.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import triton

from shadow_kernels import BoundaryWeights, StepSegments, boundary_
from shadow_kernels.dispatch import Backend
from shadow_kernels.testing import MIXED_FLAGS, PAPER_FLAGS, make_boundary_case, popularity_slots

DEVICE = "cuda"
ROTATION_BYTES = 256 << 20  # several times the L2 cache of any current GPU
MAX_GRAPH_CALLS = 128
MAX_LAYER_CALLS = 32
NUM_REPLAYS = 25
NUM_BESIDE = 8  # dense products that take turns
# Inputs and outputs of a layer's products, in halves of the hidden size.
LAYER_PRODUCTS = ((2, 3), (2, 2), (2, 12), (6, 2))


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the result: a step's tokens, the adapters among them, and the adapter's sizes."""

    num_tokens: int
    num_adapters: int
    hidden_size: int = 4096
    rank: int = 16
    gate_size: int = 8
    dtype: torch.dtype = torch.bfloat16

    @property
    def weight_bytes(self) -> int:
        rows = 4 * self.gate_size + 2 * self.rank + 2
        return min(self.num_adapters, self.num_tokens) * rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize

    @property
    def moved_bytes(self) -> int:
        """Weights once; hidden and state read and written, the residual read."""
        return self.weight_bytes + 5 * self.num_tokens * self.row_bytes


SHAPES = [
    *(Shape(t, a) for t, a in ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32), (64, 64))),
    *(Shape(t, a) for t, a in ((128, 1), (128, 32), (256, 32), (512, 32), (1024, 1), (1024, 32))),
    *(Shape(t, a) for t, a in ((2048, 1), (2048, 32), (8192, 32))),
    *(Shape(t, a, 1024, 16, 10) for t, a in ((1, 1), (32, 32), (2048, 32))),
    *(Shape(t, a, 2560) for t, a in ((1, 1), (32, 32), (2048, 32))),
    *(Shape(t, a, 4096, 8, 8) for t, a in ((32, 32),)),
    *(Shape(t, a, 4096, 64, 10) for t, a in ((1, 1), (32, 32), (2048, 32))),
    *(Shape(t, a, 8192) for t, a in ((1, 1), (32, 32), (2048, 32))),
    *(Shape(t, a, dtype=torch.float16) for t, a in ((1, 1), (32, 32), (2048, 32))),
    *(Shape(t, a, dtype=torch.float32) for t, a in ((1, 1), (32, 32))),
]

NUM_MAIN_SHAPES = 16  # of them, Qwen3-8B with the paper's adapter in bf16


def verify(shape: Shape, backend: Backend) -> float:
    """Return the worst row's error; raises where the operator is wrong."""
    slots = popularity_slots("uniform", shape.num_tokens, shape.num_adapters, seed=shape.num_tokens)
    case = make_boundary_case(
        slots, num_adapter_slots=shape.num_adapters, hidden_size=shape.hidden_size, rank=shape.rank,
        gate_size=shape.gate_size, dtype=shape.dtype, device=DEVICE, flags=MIXED_FLAGS,
    )  # fmt: skip
    return case.assert_correct(case.run(backend), case.expected())


def time_graph(body: Callable[[int], object], num_calls: int) -> float:
    """Return microseconds per call: the median over replays of a graph that holds `num_calls` calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body(0)  # compiles before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(num_calls):
            body(call)
    times = []
    for _ in range(NUM_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / num_calls)
    return statistics.median(times[5:])


def make_layers(shape: Shape, num_layers: int, layout: str = "slots") -> list[BoundaryWeights]:
    """Return views per layer into random weights.

    "slots" are (slots, layers, ...) as the server has them, "layers" (layers, slots, ...), and "packed" is one tensor
    (layers, slots, elements) with all that a slot has of a layer.
    """
    num_slots, D = shape.num_adapters, shape.hidden_size  # noqa: N806
    update = (2, shape.gate_size, D)
    sizes = [update, update[:2], update, (2, D), (shape.rank, D), (shape.rank, D)]
    if layout == "packed":
        # The vector that is no multiple of 16 bytes goes last.
        places = [0, *np.cumsum([math.prod(size) for size in (sizes[0], *sizes[2:], sizes[1])])]
        storage = random_weights(shape, num_layers, num_slots, places[-1] + -places[-1] % 64)
        stacks = [
            storage[..., place : place + math.prod(size)].unflatten(-1, size)
            for place, size in zip((0, places[5], *places[1:5]), sizes, strict=True)
        ]
    elif layout == "layers":
        stacks = [random_weights(shape, num_layers, num_slots, *size) for size in sizes]
    else:
        stacks = [
            random_weights(shape, num_slots, num_layers, *size).transpose(0, 1) for size in sizes
        ]
    flags = torch.full((num_slots,), PAPER_FLAGS, dtype=torch.int32, device=DEVICE)
    scale = torch.full((num_slots,), 0.1, device=DEVICE)
    norm = [torch.ones(num_slots, D, device=DEVICE, dtype=shape.dtype) for _ in range(2)]
    return [
        BoundaryWeights(flags, scale, *norm, *(s[layer] for s in stacks))
        for layer in range(num_layers)
    ]


def random_weights(shape: Shape, *size: int) -> torch.Tensor:
    """Return a tensor of that size in the shape's dtype, on the device, with deviation 0.02."""
    return torch.empty(size, device=DEVICE, dtype=shape.dtype).normal_(0.0, 0.02)


def make_dense(shape: Shape, num_layers: int) -> list[list[torch.Tensor]]:
    """Return the products' weights, (outputs, inputs), of as many layers as half of the free memory holds."""
    half = shape.hidden_size // 2
    sizes = [(outputs * half, inputs * half) for inputs, outputs in LAYER_PRODUCTS]
    layer_bytes = sum(math.prod(size) for size in sizes) * shape.dtype.itemsize
    free = torch.cuda.mem_get_info()[0] // 2
    num_sets = max(1, min(num_layers, free // layer_bytes))
    return [[random_weights(shape, *size) for size in sizes] for _ in range(num_sets)]


def measure(shape: Shape, backends: list[Backend], layout: str) -> dict[str, dict[str, float]]:
    """Return backend to its three times in microseconds."""
    num_layers = max(4, min(MAX_GRAPH_CALLS, ROTATION_BYTES // shape.weight_bytes))
    layers = make_layers(shape, num_layers, layout)
    segments = StepSegments(shape.num_tokens, shape.num_adapters, DEVICE)
    segments.fill((np.arange(shape.num_tokens) % shape.num_adapters).astype(np.int32))
    size = (shape.num_tokens, shape.hidden_size)
    hidden, residual, state, x = (
        torch.randn(size, device=DEVICE).to(shape.dtype) for _ in range(4)
    )
    num_layer_calls = min(num_layers, MAX_LAYER_CALLS)
    beside = random_weights(shape, NUM_BESIDE, shape.hidden_size, shape.hidden_size)
    dense = make_dense(shape, num_layer_calls)
    wide = {
        columns * shape.hidden_size // 2: random_weights(
            shape, shape.num_tokens, columns * shape.hidden_size // 2
        )
        for pair in LAYER_PRODUCTS
        for columns in pair
    } | {shape.hidden_size: hidden}

    def base(call: int) -> None:
        torch.mm(x, beside[call % NUM_BESIDE], out=hidden)

    def layer(call: int) -> None:
        for product in dense[call % len(dense)]:
            inputs = x if product.shape[1] == shape.hidden_size else wide[product.shape[1]]
            torch.mm(inputs, product.T, out=wide[product.shape[0]])

    base_us, layer_us = time_graph(base, num_layers), time_graph(layer, num_layer_calls)
    times = {}
    for backend in backends:

        def operator(call: int, backend: Backend = backend) -> None:
            boundary_(hidden, residual, state, segments.grouping, layers[call], backend=backend)

        def both(call: int, operator: Callable[[int], None] = operator) -> None:
            base(call)
            operator(call)

        def behind(call: int, operator: Callable[[int], None] = operator) -> None:
            layer(call)
            operator(call)

        alone = time_graph(operator, num_layers)
        times[str(backend)] = {
            "alone_us": round(alone, 2),
            "beside_us": round(time_graph(both, num_layers) - base_us, 2),
            "layer_us": round(time_graph(behind, num_layer_calls) - layer_us, 2),
        }
    return times


def copy_bandwidth() -> float:
    """Return bytes per second, read and written, of a kernel over a large tensor; a device's own copies are slower."""
    source = torch.zeros(1 << 28, dtype=torch.float32, device=DEVICE)
    target = torch.empty_like(source)
    num_bytes = 2 * source.numel() * source.element_size()
    return num_bytes / time_graph(lambda _: torch.add(source, 1.0, out=target), 4) * 1e6


def environment(commit: str) -> dict[str, object]:
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.sm,clocks.mem",
        "--format=csv,noheader",
    ]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(), "driver_and_clocks": driver, "torch": torch.__version__,
        "triton": triton.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0], "commit": commit,
        "copy_gb_per_second": round(copy_bandwidth() / 1e9),
    }  # fmt: skip


def report(
    facts: dict[str, object], rows: Iterable[dict[str, object]], output: Path | None
) -> None:
    """Print the facts, then each row as soon as it is measured; write all of it to `output` at the end."""
    print(json.dumps(facts), flush=True)
    kept = []
    for row in rows:
        kept.append(row)
        print(json.dumps(row), flush=True)
    if output:
        document = {"environment": facts, "rows": kept}
        output.write_text(json.dumps(document, indent=1) + "\n")


def row_of(
    shape: Shape, backends: list[Backend], bytes_per_us: float, layout: str
) -> dict[str, object]:
    """Return one result: sizes, the ideal time, and for each backend error, times and percent of bandwidth."""
    row: dict[str, object] = {**asdict(shape), "dtype": str(shape.dtype).removeprefix("torch.")}
    ideal = shape.moved_bytes / bytes_per_us
    errors = {backend: verify(shape, backend) for backend in backends}
    for backend, times in measure(shape, backends, layout).items():
        row[backend] = {
            "worst_row_error": float(f"{errors[backend]:.2e}"),  # type: ignore[index]
            **times,
            "gb_per_second": round(shape.moved_bytes / times["alone_us"] / 1e3),
            "percent_of_copy": round(100 * ideal / times["alone_us"]),
        }
    return {**row, "ideal_us": round(ideal, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write all rows as one JSON document")
    parser.add_argument("--backends", nargs="+", default=["triton", "cuda"])
    parser.add_argument("--commit", default="unknown", help="what is measured")
    parser.add_argument("--tokens", nargs="+", type=int, help="only shapes of these many tokens")
    parser.add_argument("--quick", action="store_true", help="the shapes of Qwen3-8B only")
    parser.add_argument(
        "--layout",
        choices=["slots", "layers", "packed"],
        default="slots",
        help="how weights lie in memory",
    )
    options = parser.parse_args()
    facts = environment(options.commit) | {"layout": options.layout}
    bytes_per_us = facts["copy_gb_per_second"] * 1e3  # type: ignore[operator]
    shapes = SHAPES[:NUM_MAIN_SHAPES] if options.quick else SHAPES
    rows = (
        row_of(shape, options.backends, bytes_per_us, options.layout)
        for shape in shapes
        if not options.tokens or shape.num_tokens in options.tokens
    )
    report(facts, rows, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
