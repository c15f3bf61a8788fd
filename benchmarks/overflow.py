"""More adapters than slots: throughput and time to first token of 16 adapters on 8 slots against 8 on 8.

    python benchmarks/overflow.py                           a random tiny base on a CPU
    python benchmarks/overflow.py --model 8b --layers 8     a random Qwen3-8B shape with few layers on a GPU

Every case runs in an engine of its own, or in turns in a single one with `--one-engine`, under the same load:
`--clients` of them, each with one request at a time for an adapter drawn uniformly. With `--stock` the same is measured
with vLLM's own scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import environment
from random_adapter import write_adapter
from shape import SHAPES, write_shape

TINY_VOCAB = 4096
MODELS = SHAPES | {"tiny": (256, 512, 4, 8, 2, True)}


@dataclass(slots=True)
class Served:
    """One request's times in seconds and its generated tokens."""

    added_at: float
    first_at: float | None = None
    num_tokens: int = 0


class ClosedLoop:
    """Clients that each keep one request in the engine."""

    def __init__(self, llm: Any, options: argparse.Namespace, vocab: int, count: int) -> None:
        from vllm import SamplingParams

        self._engine = llm.llm.llm_engine
        self._requests = [handle.request for handle in llm.adapters.values()][:count]
        self._random = random.Random(0)
        self._options, self._vocab = options, vocab
        self._num_added = 0
        self._num_preemptions = self._count_preemptions()
        self._num_tokens = 0
        self._open: dict[str, Served] = {}
        self.done: list[Served] = []
        self._sampling = lambda: SamplingParams(
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            max_tokens=self._random.randint(options.new_tokens // 2, options.new_tokens * 3 // 2),
        )

    def run(self, seconds: float) -> float:
        """Keep the clients busy; return the seconds that it took."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            while len(self._open) < self._options.clients:
                self._add()
            self._step()
        return time.perf_counter() - started

    def drain(self) -> None:
        """Finish what is open."""
        while self._open:
            self._step()

    def num_tokens(self) -> int:
        """Tokens generated since measuring began."""
        return self._num_tokens

    def first_token_seconds(self) -> list[float]:
        """Times to first token; a request that still waits counts with what it has waited."""
        now = time.perf_counter()
        served = (*self.done, *self._open.values())
        return [(now if s.first_at is None else s.first_at) - s.added_at for s in served]

    def num_preemptions(self) -> float:
        """Preemptions since this loop was made, by vLLM's own counter."""
        return self._count_preemptions() - self._num_preemptions

    def _count_preemptions(self) -> float:
        metrics = self._engine.get_metrics()
        return sum(m.value for m in metrics if m.name == "vllm:num_preemptions")

    def forget(self) -> None:
        """Start measuring: what is open goes on, and its tokens count from here."""
        self.done.clear()
        self._num_tokens = 0

    def _add(self) -> None:
        name = str(self._num_added)
        self._num_added += 1
        prompt = [
            self._random.randrange(10, self._vocab) for _ in range(self._options.prompt_tokens)
        ]
        self._open[name] = Served(time.perf_counter())
        self._engine.add_request(
            name,
            {"prompt_token_ids": prompt},
            self._sampling(),
            lora_request=self._random.choice(self._requests),
        )

    def _step(self) -> None:
        for output in self._engine.step():
            served = self._open[output.request_id]
            if served.first_at is None:
                served.first_at = time.perf_counter()
            num_tokens = len(output.outputs[0].token_ids)
            self._num_tokens += num_tokens - served.num_tokens
            served.num_tokens = num_tokens
            if output.finished:
                self.done.append(self._open.pop(output.request_id))


def run_child(options: argparse.Namespace) -> None:
    """Measure one case and write its figures; runs in a process of its own."""
    from shadow_runtime.slots.derive import SlotOptions
    from shadow_runtime.vllm_bridge import engine_args
    from shadow_runtime.vllm_bridge.offline import ShadowLLM

    job = json.loads(Path(options.job).read_text())
    arguments = job["arguments"]
    if job["is_stock"]:
        is_async = arguments.get("async_scheduling", job["is_gpu"])
        name = "async_scheduler.AsyncScheduler" if is_async else "scheduler.Scheduler"
        engine_args.SCHEDULER_FACTORY = f"vllm.v1.core.sched.{name}"
    llm = ShadowLLM(
        job["model"],
        job["adapters"],
        options=SlotOptions(
            max_resident_adapters=options.slots,
            max_adapter_wait_seconds=options.max_wait,
            adapter_quantum_tokens=options.quantum,
        ),
        **arguments,
    )
    scheduler = "stock" if job["is_stock"] else "ours"
    rows = []
    for count in job["counts"]:
        loop = ClosedLoop(llm, options, job["vocab"], count)
        rows.append({"num_adapters": count, "scheduler": scheduler} | measure_loop(loop, options))
        print(json.dumps(rows[-1]), flush=True)
        loop.drain()
    llm.shutdown()
    Path(job["result"]).write_text(json.dumps(rows))


def measure_loop(loop: ClosedLoop, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one case once it runs evenly."""
    loop.run(options.warmup_seconds)
    loop.forget()
    seconds = loop.run(options.seconds)
    waits = sorted(loop.first_token_seconds())
    return {
        "tokens_per_second": loop.num_tokens() / seconds,
        "requests": len(loop.done),
        "preemptions": loop.num_preemptions(),
        "ttft_p50_ms": 1e3 * statistics.median(waits),
        "ttft_p99_ms": 1e3 * waits[int(0.99 * (len(waits) - 1))],
        "ttft_max_ms": 1e3 * waits[-1],
    }


def prepare(options: argparse.Namespace, work: Path) -> tuple[Path, list[Path], dict[str, Any]]:
    """Write base and adapters; return them and the engine arguments."""
    SHAPES.update(MODELS)
    base = write_shape(options.model, work / "base", options.layers)
    arguments: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": 1024,
        "max_num_seqs": options.seats,
        "disable_log_stats": False,
    }
    if options.model == "tiny":
        config = json.loads((base / "config.json").read_text()) | {"vocab_size": TINY_VOCAB}
        (base / "config.json").write_text(json.dumps(config))
        arguments |= {
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": 32,
            "gpu_memory_utilization": 0.2,  # of a machine that does other things, too
        }
    else:
        arguments |= {"dtype": "bfloat16", "gpu_memory_utilization": 0.85}
        # As the default has them: a step with more tokens than the largest, prompts included, runs without a graph.
        sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
        arguments["compilation_config"] = {"cudagraph_capture_sizes": sizes}
    count = options.slots * options.factor
    return base, [write_adapter(base, work / f"a{i}", i) for i in range(count)], arguments


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument("--layers", type=int, help="base layers instead of the shape's own")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--factor", type=int, default=2, help="adapters for each slot")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seats", type=int, default=64, help="max_num_seqs")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64, help="mean; uniform from half of it")
    parser.add_argument("--max-wait", type=float, default=5.0)
    parser.add_argument("--quantum", type=int, default=4096, help="tokens of a turn")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case, in turns")
    parser.add_argument("--warmup-seconds", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--one-engine", action="store_true", help="a start takes long on a GPU")
    parser.add_argument("--stock", action="store_true", help="measure vLLM's own scheduler too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Run every case, each in a process of its own or all of one scheduler in one."""
    import torch

    base, paths, arguments = prepare(options, work)
    vocab = json.loads((base / "config.json").read_text())["vocab_size"]
    runs: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    # In turns, so that a change of the machine's other load falls on all cases alike.
    for _ in range(1 if options.one_engine else options.repeats):
        for is_stock, counts in engines(options):
            job, result = work / "job.json", work / "result.json"
            job.write_text(json.dumps({
                "model": str(base), "adapters": {p.name: str(p) for p in paths[:max(counts)]},
                "arguments": arguments, "vocab": vocab, "result": str(result), "counts": counts,
                "is_stock": is_stock, "is_gpu": torch.cuda.is_available(),
            }))  # fmt: skip
            words = [sys.executable, __file__, *sys.argv[1:], "--job", str(job)]
            subprocess.run(words, check=True, env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"})
            for row in json.loads(result.read_text()):
                runs.setdefault((is_stock, row["num_adapters"]), []).append(row)
    return [median_row(rows) for rows in runs.values()]


def engines(options: argparse.Namespace) -> list[tuple[bool, list[int]]]:
    """Return (is stock scheduler, adapters of its cases in turn) of each engine; the fitting case comes first."""
    counts = [options.slots, options.slots * options.factor]
    kinds = (False, True) if options.stock else (False,)
    if options.one_engine:
        return [(is_stock, counts * options.repeats) for is_stock in kinds]
    return [(is_stock, [count]) for is_stock in kinds for count in counts]


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the figures of several runs."""
    return {
        name: value
        if name in ("scheduler", "num_adapters")
        else statistics.median(r[name] for r in rows)
        for name, value in rows[0].items()
    }


def main() -> None:
    """Measure and print the report."""
    options = parse()
    if options.job:
        run_child(options)
        return
    with tempfile.TemporaryDirectory() as name:
        rows = measure(options, Path(name))
    ratios = {
        fit["scheduler"]: {
            "throughput": over["tokens_per_second"] / fit["tokens_per_second"],
            "ttft_p50": over["ttft_p50_ms"] / fit["ttft_p50_ms"],
        }
        for fit, over in zip(rows[::2], rows[1::2], strict=True)
    }
    report = {
        "command": " ".join(["python", "benchmarks/overflow.py", *sys.argv[1:]]),
        "environment": environment(),
        "rows": rows,
        "overflow_ratio": ratios,
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
