"""A case's figures under the keys of vLLM's own serving benchmark, so that its tools read them.

Runs in: the command's own process.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadow_server.bench.load import Round, Timing

Figures = dict[str, Any]

BUSY_CLIENT_CORES = 0.8
"""A single process of clients that computes so much is what is measured, not the server."""


def figures_of(rounds: Sequence[Round], concurrency: int) -> Figures:
    """Return throughput (a second), and mean, median, deviation and p99 of the latencies (ms)."""
    timings = [timing for a_round in rounds for timing in a_round.timings]
    done = [timing for timing in timings if timing.error is None and timing.arrivals]
    seconds = sum(a_round.seconds for a_round in rounds)
    num_in = sum(timing.prompt_tokens for timing in done)
    num_out = sum(timing.output_tokens for timing in done)
    figures: Figures = {
        "duration": seconds,
        "max_concurrency": concurrency,
        "num_prompts": len(timings),
        "completed": len(done),
        "failed": len(timings) - len(done),
        "errors": sorted({timing.error for timing in timings if timing.error})[:5],
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "request_throughput": len(done) / seconds,
        "output_throughput": num_out / seconds,
        "total_token_throughput": (num_in + num_out) / seconds,
        "client_cpu_cores": sum(a_round.cpu_seconds for a_round in rounds) / seconds,
    }
    for name, values in _latencies(done).items():
        figures |= _spread(name, values)
    return figures


def _latencies(timings: Iterable[Timing]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {"ttft": [], "tpot": [], "itl": [], "e2el": []}
    for timing in timings:
        first, last = timing.arrivals[0], timing.arrivals[-1]
        values["ttft"].append(first - timing.sent_at)
        values["e2el"].append(last - timing.sent_at)
        values["itl"] += [b - a for a, b in itertools.pairwise(timing.arrivals)]
        if timing.output_tokens > 1:
            values["tpot"].append((last - first) / (timing.output_tokens - 1))
    return values


def _spread(name: str, seconds: list[float]) -> Figures:
    values = sorted(1e3 * value for value in seconds) or [0.0]
    return {
        f"mean_{name}_ms": statistics.fmean(values),
        f"median_{name}_ms": statistics.median(values),
        f"std_{name}_ms": statistics.pstdev(values),
        f"p99_{name}_ms": values[min(len(values) - 1, int(0.99 * len(values)))],
    }


def ratios(figures: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a case over the base; above 1 is slower for latencies and faster for throughput.

    None where either has no answers: nothing would else be the fastest of all.
    """
    keys = (
        "output_throughput",
        "median_ttft_ms",
        "p99_ttft_ms",
        "median_tpot_ms",
        "median_itl_ms",
        "p99_itl_ms",
    )
    return {key: figures[key] / base[key] if figures[key] and base[key] else None for key in keys}
