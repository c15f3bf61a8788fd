"""Print what `stall_probe` recorded: the times of every watched call, and what the slowest steps were spent on.

python benchmarks/stall_report.py PREFIX [NUM_SLOW_STEPS]
"""

from __future__ import annotations

import glob
import json
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

STEP = "execute_model"


def report(path: str, num_slow: int) -> None:
    """Print one process's report."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    calls = [line[1:] for line in lines if line[0] == "call"]
    stacks = [line[1:] for line in lines if line[0] == "stack"]
    print(path, len(calls), "calls", len(stacks), "samples")
    times: dict[str, list[float]] = defaultdict(list)
    for begin, end, name, _ in calls:
        times[name].append(1e3 * (end - begin))
    for name, values in sorted(times.items()):
        print(f"  {name:24} {spread(values)}")
    steps = sorted((begin, tokens) for begin, _, name, tokens in calls if name == STEP)
    periods = [(b[0] - a[0], *a) for a, b in pairwise(steps)]
    busy = [period for period in periods if period[0] < 0.5]
    if busy:
        print(f"  from step to step        {spread([1e3 * p[0] for p in busy])}")
    for seconds, begin, tokens in sorted(busy, reverse=True)[:num_slow]:
        print(f"  {1e3 * seconds:.1f} ms, {tokens} tokens:", *during(begin, seconds, calls, stacks))


def spread(values: list[float]) -> str:
    """Return number, middle and tail of times in ms."""
    ordered = sorted(values)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    return f"n {len(ordered):6} p50 {p50:8.2f} p99 {p99:8.2f} max {ordered[-1]:8.2f} ms"


def during(begin: float, seconds: float, calls: list[Any], stacks: list[Any]) -> tuple[Any, Any]:
    """Return the milliseconds of other calls within a step, and where the main thread was most."""
    end = begin + seconds
    overlap: Counter[str] = Counter()
    for start, stop, name, _ in calls:
        if name not in (STEP, "step", "step_with_batch_queue") and start < end and stop > begin:
            overlap[name] += round(1e3 * (min(stop, end) - max(start, begin)), 1)
    places = Counter(stack[0] for at, stack in stacks if begin <= at <= end and stack)
    return dict(overlap), places.most_common(5)


if __name__ == "__main__":
    for name in sorted(glob.glob(f"{sys.argv[1]}.*.jsonl")):
        report(name, int(sys.argv[2]) if len(sys.argv) > 2 else 8)
