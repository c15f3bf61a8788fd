"""Seconds until an engine is ready: stock vLLM, its multi-LoRA and this project, one after the other.

    python benchmarks/start_up.py                                     a random tiny shape on a CPU
    python benchmarks/start_up.py --model 8b --out result.json        the Qwen3-8B shape on a GPU
    ... --work DIR --caches cold, then ... --work DIR --caches warm   the same in two runs

Each engine starts twice: cold, with empty caches of compiled code, as on a new machine; and warm, with what its cold
start left. CUDA graphs are captured for the sizes that vLLM chooses itself. Stock vLLM starts once before with a
single layer, which is thrown away, so that nobody pays for reading the packages from disk. The phases are vLLM's own
log messages; some contain others. The multi-LoRA and shadow engines have as many slots; the latter loads one adapter.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkout import make_importable

make_importable()

from contestant import Contestant, Job  # noqa: E402
from environment import environment  # noqa: E402
from lora_adapter import RANK, write_lora  # noqa: E402
from random_adapter import write_adapter  # noqa: E402
from serving import CPU_ENVIRONMENT, TINY  # noqa: E402
from shape import SHAPES, write_shape  # noqa: E402

ENGINES = ("base", "lora", "shadow")
CACHES = ("cold", "warm")

# What the phases of a start are called in vLLM's log.
PHASES = {
    "weights": r"Model loading took .* and ([\d.]+) seconds",
    "trace": r"Dynamo bytecode transform time: ([\d.]+) s",
    "compile": r"torch\.compile (?:took|and initial profiling/warmup run together took) ([\d.]+) s in total",
    "first_run": r"Initial profiling/warmup run took ([\d.]+) s",
    "graphs": r"Graph capturing finished in ([\d.]+) secs",
    "warm_up": r"JIT kernel warmup finished in ([\d.]+)s",
    "engine": r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s",
}


@dataclass(frozen=True)
class Start:
    """One start: its seconds, and of each phase that the log names the seconds added up."""

    engine: str
    caches: str
    seconds: float
    phases: dict[str, float]

    def to_json(self, base: Start | None) -> dict[str, Any]:
        """Return the row of the report; `base` is the stock engine's start with caches alike."""
        row = {"engine": self.engine, "caches": self.caches, "start_s": round(self.seconds, 1)}
        if base is not None:
            row["ratio_base"] = round(self.seconds / base.seconds, 4)
        return row | {"phases_s": self.phases}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*TINY, *SHAPES], default="tiny")
    parser.add_argument("--layers", type=int, help="base layers instead of the shape's own")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(ENGINES))
    parser.add_argument("--adapters", type=int, default=32, help="slots")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=CACHES)
    parser.add_argument("--work", type=Path, help="folder for bases, adapters and caches, kept")
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs")
    return parser.parse_args()


class Starter:
    """Starts engines over one base with one adapter of each kind."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        SHAPES.update(TINY)
        self._options, self._work = options, work
        self._is_tiny = options.model in TINY
        self._base = write_shape(options.model, work / "base", options.layers)
        if self._is_tiny:
            config = json.loads((self._base / "config.json").read_text())
            (self._base / "config.json").write_text(json.dumps(config | {"vocab_size": 4096}))
        self._logs = options.logs or work / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)

    def start(self, engine: str, caches: str) -> Start:
        """Start an engine, "cold" with a new folder for what is compiled or "warm" with its own, and stop it.

        Raises:
            SystemExit: a warm start without what a cold one has left.
        """
        log = self._logs / f"{engine}-{caches}.log"
        folder = self._work / f"caches-{engine}"
        if caches == "cold":
            shutil.rmtree(folder, ignore_errors=True)
        elif not folder.exists():
            raise SystemExit(f"no cold start of {engine} has left anything in {self._work}")
        contestant = Contestant(self._job(engine, log, folder), 2)
        try:
            seconds = contestant.wait_until_ready()
        finally:
            contestant.stop()
        return Start(engine, caches, seconds, read_phases(log.read_text()))

    def _job(self, engine: str, log: Path, caches: Path) -> Job:
        config = json.loads((self._base / "config.json").read_text())
        return Job(
            mode=engine,
            model=str(self._base),
            adapters=self._adapters(engine),
            arguments=self._arguments(engine),
            vocab=config["vocab_size"],
            environment=_log_to(log)
            | _caches_in(caches)
            # The plugin is not registered where it is not measured.
            | ({} if engine == "shadow" else {"VLLM_PLUGINS": ""})
            | (CPU_ENVIRONMENT if self._is_tiny else {}),
        )

    def _adapters(self, engine: str) -> dict[str, str]:
        folder = self._work / engine
        if engine == "base":
            return {}
        if not folder.exists():
            write = write_lora if engine == "lora" else _write_shadow
            write(self._base, folder)
        return {"first": str(folder)}

    def _arguments(self, engine: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_model_len": 2048,
            "disable_log_stats": True,
        }
        if self._is_tiny:
            arguments |= {"dtype": "float32", "enforce_eager": True, "block_size": 32}
        else:
            arguments |= {"dtype": "bfloat16", "gpu_memory_utilization": 0.8}
        if engine == "lora":
            slots = self._options.adapters
            arguments |= {"enable_lora": True, "max_loras": slots, "max_lora_rank": RANK}
        if engine == "shadow":
            arguments |= {"max_resident_adapters": self._options.adapters}
        return arguments


def _write_shadow(base: Path, directory: Path) -> Path:
    return write_adapter(base, directory, 0)


def _caches_in(folder: Path) -> dict[str, str]:
    """Return the variables that put everything that is compiled into a folder."""
    return {
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def _log_to(path: Path) -> dict[str, str]:
    """Return the variables that have vLLM write its messages to a new file."""
    path.unlink(missing_ok=True)
    handler = {"class": "logging.FileHandler", "filename": str(path), "formatter": "timed"}
    logger = {"handlers": ["file"], "level": "INFO", "propagate": False}
    settings = path.with_suffix(".json")
    settings.write_text(json.dumps({
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"timed": {"format": "%(asctime)s %(name)s %(message)s"}},
        "handlers": {"file": handler},
        "loggers": {"vllm": logger, "shadow_runtime": logger, "shadow_kernels": logger},
    }))  # fmt: skip
    return {"VLLM_LOGGING_CONFIG_PATH": str(settings), "VLLM_CONFIGURE_LOGGING": "1"}


def read_phases(log: str) -> dict[str, float]:
    """Return the seconds of each phase that a log names."""
    found = {name: re.findall(pattern, log) for name, pattern in PHASES.items()}
    return {name: round(sum(map(float, all_)), 2) for name, all_ in found.items() if all_}


def report(starts: list[Start]) -> dict[str, Any]:
    """Return what is measured so far."""
    bases = {start.caches: start for start in starts if start.engine == "base"}
    return {
        "command": " ".join(["python", "benchmarks/start_up.py", *sys.argv[1:]]),
        "environment": environment(),
        "rows": [start.to_json(bases.get(start.caches)) for start in starts],
    }


def main() -> int:
    """Start, measure and print the report."""
    options = parse()
    starts: list[Start] = []
    with tempfile.TemporaryDirectory(prefix="start-up-") as folder:
        work = options.work or Path(folder)
        if "cold" in options.caches:
            one_layer = argparse.Namespace(**vars(options) | {"layers": 1, "logs": None})
            Starter(one_layer, Path(folder) / "discarded").start("base", "cold")
        starter = Starter(options, work)
        for engine in options.engines:
            for caches in options.caches:
                starts.append(starter.start(engine, caches))
                if options.out:
                    options.out.write_text(json.dumps(report(starts), indent=1) + "\n")
                print(json.dumps(report(starts)["rows"][-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
