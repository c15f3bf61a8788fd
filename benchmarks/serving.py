"""Speed of shadow adapters against the bare base and against vLLM's multi-LoRA, engines in turn in one run.

    python benchmarks/serving.py                                        a random tiny shape on a CPU
    python benchmarks/serving.py --model 8b --out result.json           the table of the Qwen3-8B shape on a GPU
    python benchmarks/serving.py --model 8b --layers 8 --engines base,shadow --cases 1:1,8:8,32:32

A case is BATCH:DISTINCT, decoding after `--prompt-tokens`; with `:prefill` behind it, the prompts of
`--prefill-tokens`. DISTINCT 0 are rows without adapter in engines that could serve some. All engines are started at
once and measured in turn, case by case; a figure is the median of `--repeats`. With `--one-by-one` they start one after
the other, and only then do the start-up seconds say something. `--profile` writes which kernels each case
runs, for `profile_report.py`.

Engines: `base` is vLLM without this plugin; `lora` vLLM's multi-LoRA as it comes, rank 16 on all linears; `lora-best`
the same with the settings that make it fastest; `shadow` this project, rank 16, gate 8, one shadow layer;
`shadow-peft` the same with adapters in peft's format, which couple at every layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from checkout import make_importable

make_importable()

from contestant import Case, Contestant, Job  # noqa: E402
from environment import environment  # noqa: E402
from lora_adapter import RANK, write_lora  # noqa: E402
from random_adapter import AdapterFormat, write_adapter  # noqa: E402
from shape import SHAPES, write_shape  # noqa: E402

ENGINES = ("base", "lora", "lora-best", "shadow")
TABLE = "1:1,8:8,32:32,128:1,128:32,32:0,32:32:prefill"
# One thread an engine: with one a core, all of a step's threads wait for the one whose core another process has taken.
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
TINY = {"tiny": (256, 512, 4, 8, 2, True)}


@dataclass(frozen=True)
class Row:
    """One case with every engine's samples, in milliseconds."""

    case: Case
    samples: dict[str, list[float]]

    @property
    def times(self) -> dict[str, float]:
        """Each engine's median."""
        return {name: statistics.median(values) for name, values in self.samples.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the row as the report has it; ratios above 1 mean slower than the other."""
        times = self.times
        row: dict[str, Any] = {
            "batch": self.case.batch,
            "distinct": self.case.distinct,
            "phase": self.case.phase,
        }
        row |= {f"{name.replace('-', '_')}_ms": round(ms, 4) for name, ms in times.items()}
        shadow = times.get("shadow")
        for key, other in (("base", "base"), ("lora", "lora"), ("lora_best", "lora-best")):
            if shadow is not None and other in times:
                row[f"ratio_{key}"] = round(shadow / times[other], 4)
        row["samples"] = {n: [round(ms, 3) for ms in values] for n, values in self.samples.items()}
        return row


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*TINY, *SHAPES], default="tiny")
    parser.add_argument("--layers", type=int, help="base layers instead of the shape's own")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(ENGINES))
    parser.add_argument("--cases", default=TABLE)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=1024)
    parser.add_argument(
        "--new-tokens", type=int, default=96, help="of an answer that times decoding"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one-by-one", action="store_true", help="start engines one by one")
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument(
        "--profile", type=Path, help="folder for the kernels of each case and engine"
    )
    parser.add_argument(
        "--profiled",
        type=lambda text: text.split(","),
        default=list(ENGINES),
        help="engines that `--profile` is about",
    )
    parser.add_argument("--plot", type=Path, help="PNG of the ratios; needs matplotlib")
    return parser.parse_args()


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the command line names."""
    cases = []
    for text in options.cases.split(","):
        batch, distinct, *phase = text.split(":")
        name = phase[0] if phase else "decode"
        tokens = options.prefill_tokens if name == "prefill" else options.prompt_tokens
        cases.append(Case(int(batch), int(distinct), name, tokens))
    return cases


class Field:
    """Writes base and adapters once and describes the engines over them."""

    def __init__(self, options: argparse.Namespace, cases: list[Case], work: Path) -> None:
        SHAPES.update(TINY)
        self._options, self._cases, self._work = options, cases, work
        self._is_tiny = options.model in TINY
        self._base = write_shape(options.model, work / "base", options.layers)
        self._config = json.loads((self._base / "config.json").read_text())
        if self._is_tiny:
            self._config["vocab_size"] = 4096
            (self._base / "config.json").write_text(json.dumps(self._config))
        self._count = max(1, *(case.distinct for case in cases))

    def job(self, engine: str) -> Job:
        """Return what to start for an engine's name."""
        mode = engine.partition("-")[0]
        return Job(
            mode=mode,
            model=str(self._base),
            adapters=self._adapters(engine),
            arguments=self._arguments(engine)
            | (self._lora_arguments(engine) if mode == "lora" else {}),
            # The plugin is not registered where it is not measured.
            environment=({} if mode == "shadow" else {"VLLM_PLUGINS": ""})
            | ({"VLLM_LORA_ENABLE_DUAL_STREAM": "1"} if engine == "lora-best" else {})
            | (CPU_ENVIRONMENT if self._is_tiny else {})
            | {"VLLM_LOGGING_LEVEL": "ERROR"},
            vocab=self._config["vocab_size"],
        )

    def _adapters(self, engine: str) -> dict[str, str]:
        if engine.startswith("shadow"):
            return self._shadow_adapters("peft" if engine == "shadow-peft" else "paper")
        return {} if engine == "base" else self._lora_adapters()

    def _lora_adapters(self) -> dict[str, str]:
        directory = self._work / "lora"
        if not directory.exists():
            write_lora(self._base, directory)
        # vLLM gives every id a slot of its own, whatever the bytes.
        return {f"a{i}": str(directory) for i in range(self._count)}

    def _shadow_adapters(self, checkpoint_format: AdapterFormat) -> dict[str, str]:
        folder = self._work / checkpoint_format
        return {
            f"a{i}": str(write_adapter(self._base, folder / f"a{i}", i, checkpoint_format))
            for i in range(self._count)
        }

    def _lora_arguments(self, engine: str) -> dict[str, Any]:
        return {
            "enable_lora": True,
            "max_loras": self._count,
            "max_cpu_loras": self._count,
            "max_lora_rank": RANK,
            "specialize_active_lora": engine == "lora-best",
        }

    def _profiler(self, engine: str) -> dict[str, Any]:
        folder = self._work / f"{engine}-traces"
        folder.mkdir(exist_ok=True)
        return {
            "profiler": "torch",
            "torch_profiler_dir": str(folder),
            "torch_profiler_activities": ["CPU"] if self._is_tiny else ["CUDA"],
            "torch_profiler_with_stack": False,
            "torch_profiler_use_gzip": False,
            "ignore_frontend": True,
        }

    def _arguments(self, engine: str) -> dict[str, Any]:
        sizes = sorted({case.batch for case in self._cases})
        arguments: dict[str, Any] = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_model_len": 2048,
            "max_num_seqs": max(sizes),
            "enable_prefix_caching": False,
            "disable_log_stats": False,  # requests know when their tokens came
        }
        if self._options.profile:
            arguments["profiler_config"] = self._profiler(engine)
        if self._is_tiny:
            return arguments | {"dtype": "float32", "enforce_eager": True, "block_size": 32}
        return arguments | {
            "dtype": "bfloat16",
            # Beside each other the engines cannot measure what is free: each gets what its cases need.
            "gpu_memory_utilization": 0.1,
            "kv_cache_memory_bytes": self._cache_bytes(),
            "compilation_config": {"cudagraph_capture_sizes": sizes},
        }

    def _cache_bytes(self) -> int:
        """Return what keys and values of the largest case take, the shadow layer's too, and half as much again."""
        config, new_tokens = self._config, self._options.new_tokens
        tokens = max(case.batch * (case.prompt_tokens + new_tokens + 16) for case in self._cases)
        layers = config["num_hidden_layers"] + 1
        return int(1.5 * tokens * layers * 4 * config["num_key_value_heads"] * config["head_dim"])


def start(options: argparse.Namespace, field: Field) -> tuple[dict[str, Contestant], Any]:
    """Start the engines; return them by name and their start-up seconds."""
    engines: dict[str, Contestant] = {}
    seconds = {}
    try:
        for name in options.engines:
            engines[name] = Contestant(field.job(name), options.new_tokens)
            if options.one_by_one:
                seconds[name] = engines[name].wait_until_ready()
        if not options.one_by_one:
            seconds = {name: engine.wait_until_ready() for name, engine in engines.items()}
    except BaseException:
        stop(engines)  # those that did start would keep this process from ending
        raise
    return engines, {name: round(value, 1) for name, value in seconds.items()}


def stop(engines: dict[str, Contestant]) -> None:
    """End the engines."""
    for engine in engines.values():
        engine.stop()


def measure(case: Case, engines: dict[str, Contestant], repeats: int) -> Row:
    """Time a case on every engine, `repeats` times in turn."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            times[name].append(engine.measure(own_case(case, name)))
    return Row(case, times)


def profile(case: Case, engines: dict[str, Contestant], folder: Path) -> None:
    """Write each engine's kernels of a case: name, start and duration in microseconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, engine in engines.items():
        runs = [astuple(run) for run in engine.profile(own_case(case, name))]
        path = folder / f"{name}-{case.phase}-{case.batch}x{case.distinct}.json"
        path.write_text(json.dumps(runs))


def own_case(case: Case, engine: str) -> Case:
    """Return the case as an engine can run it: the base has no adapters."""
    if engine != "base":
        return case
    return Case(case.batch, 0, case.phase, case.prompt_tokens)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw every engine's time over the base's, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in ("lora", "lora_best", "shadow") if f"{name}_ms" in rows[0]]
    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    for place, name in enumerate(names):
        ratios = [row[f"{name}_ms"] / row["base_ms"] for row in rows]
        at = [index + 0.8 * (place + 0.5) / len(names) - 0.4 for index in range(len(rows))]
        axes.bar(at, ratios, 0.8 / len(names), label=name.replace("_", ", "))
    axes.axhline(1, color="black", linewidth=1)
    labels = [f"{row['phase']}\n{row['batch']} x {row['distinct']}" for row in rows]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("time / base")
    axes.legend()
    figure.savefig(path, dpi=150)


def write_report(path: Path | None, rows: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    """Write what is measured so far: a run that is cut off keeps its rows."""
    if path is None:
        return
    command = " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]])
    report = {"command": command, "environment": environment(), "rows": rows}
    path.write_text(json.dumps(report | ({"start_s": seconds} if seconds else {}), indent=1) + "\n")


def main() -> int:
    """Measure and print the report."""
    options = parse()
    cases = cases_of(options)
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        field = Field(options, cases, Path(folder))
        engines, seconds = start(options, field)
        print(json.dumps({"start_s": seconds}), flush=True)
        rows: list[dict[str, Any]] = []
        try:
            for case in cases:
                rows.append(measure(case, engines, options.repeats).to_json())
                print(json.dumps(rows[-1]), flush=True)
                write_report(options.out, rows, seconds if options.one_by_one else {})
            if options.profile:
                # Behind all rows: an engine that has been profiled once is slower from then on.
                profiled = {n: e for n, e in engines.items() if n in options.profiled}
                for case in cases:
                    profile(case, profiled, options.profile)
        finally:
            stop(engines)
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
