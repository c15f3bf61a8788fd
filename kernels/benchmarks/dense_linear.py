"""Verify, then time `dense_linear` beside torch's own product, alone and in a chain of a layer's products and norms.

    python kernels/benchmarks/dense_linear.py [--models qwen3-8b ...] [--tokens 1 8 ...] [--output FILE] [--commit NAME]

Needs an NVIDIA GPU of compute capability 9.0 and the built library. Prints one JSON object a line: us of each product
with torch's and with ours, launch behind launch on weights that the cache does not hold, and us of a layer (qkv, a
product of elements for attention, o, norm, gate and up, activation, down, norm) with none, each and all of the four
ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from boundary import environment, report, time_graph

from shadow_kernels import dense_linear
from shadow_kernels.ops.boundary.cuda import add_rms_norm_
from shadow_kernels.ops.dense_linear import cuda
from shadow_kernels.ops.dense_linear.reference import dense_linear_reference
from shadow_kernels.ops.silu_and_mul.cuda import silu_and_mul
from shadow_kernels.testing import assert_close

MODELS = {  # hidden size, of the attention's output, of qkv, of the MLP
    "qwen3-0.6b": (1024, 2048, 4096, 3072),
    "qwen3-1.7b": (2048, 2048, 4096, 6144),
    "qwen3-4b": (2560, 4096, 6144, 9728),
    "qwen3-8b": (4096, 4096, 6144, 12288),
    "llama-3.1-8b": (4096, 4096, 6144, 14336),
}
TOKENS = (1, 8, 16, 32, 64)
PRODUCTS = ("qkv", "o", "gate_up", "down")
NUM_CALLS = 16  # of a graph
LEAST_BYTES = 512 << 20  # of the weights that calls take in turn, several times the L2 cache


class Layer:
    """A layer's weights, several sets in turn, and its buffers.

    Attributes:
        weights: of each product a list of (N, K).
    """

    def __init__(self, model: str, num_tokens: int) -> None:
        hidden, attention, qkv, mlp = MODELS[model]
        sizes = {
            "qkv": (qkv, hidden), "o": (hidden, attention), "gate_up": (2 * mlp, hidden), "down": (hidden, mlp),
        }  # fmt: skip
        num_bytes = sum(2 * rows * columns for rows, columns in sizes.values())
        num_sets = -(-LEAST_BYTES // num_bytes) + 1
        self.weights = {
            name: [_random(*size) * 0.02 for _ in range(num_sets)] for name, size in sizes.items()
        }
        self._inputs = {name: _random(num_tokens, columns) for name, (_, columns) in sizes.items()}
        self._residuals = [_random(num_tokens, hidden) for _ in range(2)]
        self._norm = torch.ones(hidden, device="cuda", dtype=torch.bfloat16)

    def verify(self, name: str) -> float:
        """Return the worst row's error; raises where the operator is wrong."""
        x, weight = self._inputs[name], self.weights[name][0]
        out = dense_linear(x, weight, backend="cuda")
        return assert_close(out, dense_linear_reference(x, weight, None), name)

    def product(self, name: str, *, is_own: bool) -> Callable[[int], object]:
        """Return one product as the body of a graph."""
        return lambda call: self._multiply(name, self._inputs[name], call, is_own=is_own)

    def run(self, call: int, own: Collection[str]) -> None:
        """Launch a whole layer; `own` are the products that are ours."""
        hidden = self._inputs["qkv"]

        def multiply(name: str, x: torch.Tensor) -> torch.Tensor:
            return self._multiply(name, x, call, is_own=name in own)

        qkv = multiply("qkv", hidden)
        attention = self._inputs["o"]
        torch.mul(qkv[:, : attention.shape[1]], 0.1, out=attention)
        hidden = multiply("o", attention)
        add_rms_norm_(hidden, self._residuals[0], self._norm, 1e-6)
        hidden = multiply("down", silu_and_mul(multiply("gate_up", hidden)))
        add_rms_norm_(hidden, self._residuals[1], self._norm, 1e-6)

    def _multiply(self, name: str, x: torch.Tensor, call: int, *, is_own: bool) -> torch.Tensor:
        weights = self.weights[name]
        weight = weights[call % len(weights)]
        return cuda.dense_linear(x, weight, None) if is_own else x @ weight.T


def _random(*size: int) -> torch.Tensor:
    return torch.randn(size, device="cuda").bfloat16()


def measure(model: str, num_tokens: int) -> dict[str, object]:
    """Return one result: the worst error and both times of each product, and those of a layer."""
    layer = Layer(model, num_tokens)
    row: dict[str, object] = {"model": model, "tokens": num_tokens}
    for name in PRODUCTS:
        error = layer.verify(name)
        times = [
            round(time_graph(layer.product(name, is_own=is_own), NUM_CALLS), 2)
            for is_own in (False, True)
        ]
        row[name] = {
            "torch_us": times[0], "own_us": times[1], "worst_row_error": float(f"{error:.2e}"),
            "gb_per_second": round(2 * layer.weights[name][0].numel() / times[1] / 1e3),
        }  # fmt: skip
    choices: list[tuple[str, tuple[str, ...]]] = [
        ("none", ()), *((name, (name,)) for name in PRODUCTS), ("all", PRODUCTS), ("none again", ()),
    ]  # fmt: skip
    row["layer_us"] = {
        title: round(time_graph(lambda call, own=own: layer.run(call, own), NUM_CALLS), 2)
        for title, own in choices
    }
    return row


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--output", type=Path, help="write all rows as one JSON document")
    parser.add_argument("--commit", default="unknown", help="what is measured")
    options = parser.parse_args()
    if not cuda.can_run_on("cuda"):
        parser.error("the library is not built: python -m shadow_kernels.build")
    rows = (measure(model, num_tokens) for model in options.models for num_tokens in options.tokens)
    report(environment(options.commit), rows, options.output)


if __name__ == "__main__":
    main()
