"""Decode latency of the real engine with adapters as a ratio to the bare base, in one run on one machine.

    python benchmarks/engine.py --model demo                    the shipped demo on a CPU
    python benchmarks/engine.py --model 8b --adapters 32        a random Qwen3-8B shape on a GPU

Each engine runs in a process of its own: first vLLM without this plugin, then the same vLLM with the shadow
path. ITL is the slope between a short and a long generation, so prefill and start-up cancel; each figure is the
median of `--repeats`.
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
from pathlib import Path
from typing import Any

from environment import environment
from random_adapter import write_adapter
from shape import SHAPES, write_shape


class Engine:
    """One engine under measurement: stock vLLM, or the same with the shadow path."""

    def __init__(
        self, mode: str, model: str, adapters: dict[str, str], arguments: dict[str, Any]
    ) -> None:
        started = time.perf_counter()
        if mode == "base":
            from vllm import LLM

            self._llm: Any = LLM(model=model, **arguments)
        else:
            from shadow_runtime.vllm_bridge.offline import ShadowLLM

            self._llm = ShadowLLM(
                model, adapters, max_resident_adapters=max(1, len(adapters)), **arguments
            )
        self.start_seconds = time.perf_counter() - started
        self._names = list(adapters)
        self._mode = mode
        self._random = random.Random(0)

    def seconds(
        self, batch: int, distinct: int, prompt_tokens: int, new_tokens: int, vocab: int
    ) -> float:
        """Time one batch of random prompts, row i with adapter i modulo `distinct` (0: bare base)."""
        from vllm import SamplingParams

        prompts = [
            {"prompt_token_ids": [self._random.randrange(10, vocab) for _ in range(prompt_tokens)]}
            for _ in range(batch)
        ]
        sampling = SamplingParams(
            temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        started = time.perf_counter()
        if self._mode == "base":
            self._llm.generate(prompts, sampling, use_tqdm=False)
        else:
            rows = [self._names[i % distinct] if distinct else None for i in range(batch)]
            self._llm.generate(prompts, sampling, adapters=rows)
        return time.perf_counter() - started

    def measure(
        self, batch: int, distinct: int, options: argparse.Namespace, vocab: int
    ) -> dict[str, float]:
        """Return median ITL in ms and median prefill seconds of a batch."""
        self.seconds(batch, distinct, options.prompt_tokens, 4, vocab)
        short, long = options.short_tokens, options.long_tokens
        slopes = [
            (
                self.seconds(batch, distinct, options.prompt_tokens, long, vocab)
                - self.seconds(batch, distinct, options.prompt_tokens, short, vocab)
            )
            / (long - short)
            for _ in range(options.repeats)
        ]
        prefill = [
            self.seconds(batch, distinct, options.prefill_tokens, 1, vocab)
            for _ in range(options.repeats)
        ]
        return {"itl_ms": 1e3 * statistics.median(slopes), "prefill_s": statistics.median(prefill)}


def run_child(options: argparse.Namespace) -> None:
    """Measure one engine and write its figures; runs in a process of its own."""
    job = json.loads(Path(options.job).read_text())
    engine = Engine(job["mode"], job["model"], job["adapters"], job["arguments"])
    rows = []
    for batch, distinct in job["cases"]:
        figures = engine.measure(batch, distinct, options, job["vocab"])
        rows.append({"batch": batch, "distinct": distinct, **figures})
        print(json.dumps({"mode": job["mode"], **rows[-1]}), flush=True)
    result = {"mode": job["mode"], "start_s": engine.start_seconds, "rows": rows}
    Path(job["result"]).write_text(json.dumps(result))


def table(base: dict[str, Any], shadow: dict[str, Any]) -> list[dict[str, Any]]:
    """Join both engines' rows; ratios are to the stock engine's row of the same batch."""
    stock = {row["batch"]: row for row in base["rows"]}
    return [
        {
            **row,
            "base_itl_ms": stock[row["batch"]]["itl_ms"],
            "itl_ratio": row["itl_ms"] / stock[row["batch"]]["itl_ms"],
            "prefill_ratio": row["prefill_s"] / stock[row["batch"]]["prefill_s"],
        }
        for row in shadow["rows"]
    ]


def prepare(options: argparse.Namespace, work: Path) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return model path, adapters and engine arguments of the chosen model."""
    if options.model == "demo":
        from shadow_server.demo import demo_adapter_paths, demo_model_path

        adapters = {name: str(path) for name, path in demo_adapter_paths().items()}
        arguments = {
            "max_model_len": 1024,
            "dtype": "float32",
            "enforce_eager": True,
            "gpu_memory_utilization": 0.2,  # of a machine that does other things, too
        }
        return str(demo_model_path()), adapters, arguments
    base = write_shape(options.model, work / "base", options.layers)
    adapters = {
        f"a{i}": str(write_adapter(base, work / f"a{i}", i)) for i in range(options.adapters)
    }
    sizes = sorted({*options.batches})
    arguments = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "gpu_memory_utilization": 0.85,
        "max_num_seqs": max(256, *sizes),
        "compilation_config": {"cudagraph_capture_sizes": sizes},
    }
    return str(base), adapters, arguments


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["demo", *SHAPES], default="demo")
    parser.add_argument("--layers", type=int, help="base layers instead of the shape's own")
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument(
        "--batches", type=lambda t: [int(n) for n in t.split(",")], default=[1, 8, 32]
    )
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=256)
    parser.add_argument("--short-tokens", type=int, default=16)
    parser.add_argument("--long-tokens", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure both engines and print the table."""
    options = parse()
    if options.job:
        run_child(options)
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model, adapters, arguments = prepare(options, work)
        vocab = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
        arguments |= {"enable_prefix_caching": False, "disable_log_stats": True}
        results = {}
        for mode in ("base", "shadow"):
            kinds = [0] if mode == "base" else sorted({0, 1, len(adapters)})
            cases = sorted({(b, min(k, b)) for b in options.batches for k in kinds})
            job = work / f"{mode}.json"
            result = work / f"{mode}-result.json"
            job.write_text(json.dumps({
                "mode": mode, "model": model, "adapters": adapters, "arguments": arguments,
                "cases": cases, "vocab": vocab, "result": str(result),
            }))  # fmt: skip
            words = [sys.executable, __file__, "--job", str(job), "--repeats", str(options.repeats)]
            for field in ("prompt_tokens", "prefill_tokens", "short_tokens", "long_tokens"):
                words += [f"--{field.replace('_', '-')}", str(getattr(options, field))]
            # The stock engine runs without our plugin registered at all.
            plugins = {"VLLM_PLUGINS": ""} if mode == "base" else {}
            subprocess.run(words, check=True, env=os.environ | plugins)
            results[mode] = json.loads(result.read_text())
    report = {
        "command": " ".join(["python", "benchmarks/engine.py", *sys.argv[1:]]),
        "environment": environment(),
        "start_s": {mode: results[mode]["start_s"] for mode in results},
        "start_ratio": results["shadow"]["start_s"] / results["base"]["start_s"],
        "rows": table(results["base"], results["shadow"]),
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
