"""Hot swap under load: what streaming clients see while one adapter gets a new version every second.

    python benchmarks/hot_swap.py                                    a tiny base on a CPU
    python benchmarks/hot_swap.py --model 8b --out result.json       the shape of Qwen3-8B on a GPU
    python benchmarks/hot_swap.py --model 8b --layers 4              the same with few layers: a quick try

Starts a server and the clients in processes of their own and publishes over HTTP. The adapters are canaries: every
token names its version (tests/support/version_canary.py), so that a dropped, mixed, stale or misnamed answer shows.
Windows with and without publishes alternate. ITL is the time between two arrivals of one stream at the client. Exits
with 1 when an answer is wrong, or the ratio of the p99 ITL with publishes to that without is over `--max-ratio`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkout import make_importable

make_importable()

from environment import environment  # noqa: E402

from canary_server import CPU_OPTIONS, canary_server  # noqa: E402
from hot_swap_run import SwapRun, SwapSettings  # noqa: E402
from version_canary import QWEN3_8B, CanaryShape  # noqa: E402

_PROBLEMS = ("failed", "mixed", "misnamed", "stale", "premature")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["tiny", "8b"], default="tiny")
    parser.add_argument("--layers", type=int, help="base layers instead of the shape's own")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--publishes", type=int, default=60)
    parser.add_argument("--period", type=float, default=1.0, help="seconds between publishes")
    parser.add_argument("--rounds", type=int, default=3, help="windows with publishes")
    parser.add_argument(
        "--fresh-prompts", action="store_true", help="no prompt comes twice: no prefix is cached"
    )
    parser.add_argument("--max-ratio", type=float, help="default: 1.3 on a CPU, 1.1 on a GPU")
    parser.add_argument("--work", type=Path, help="keep files and logs here; default: temporary")
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*", help="of the server, after --")
    return parser.parse_args()


def shape_of(options: argparse.Namespace) -> CanaryShape:
    """Return the base's sizes."""
    shape = QWEN3_8B if options.model == "8b" else CanaryShape()
    return dataclasses.replace(shape, num_layers=options.layers or shape.num_layers)


def engine_options(options: argparse.Namespace) -> list[str]:
    """Return the server's options for the kind of engine."""
    sizes = ["--max-num-seqs", str(options.clients + 16)]
    if options.model == "tiny" and not has_gpu():
        return [*CPU_OPTIONS, *sizes, "--max-num-batched-tokens", "2048", *options.options]
    return ["--dtype", "bfloat16", "--gpu-memory-utilization", "0.8", *sizes, *options.options]


def has_gpu() -> bool:
    """Return whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def settings_of(options: argparse.Namespace, shape: CanaryShape) -> SwapSettings:
    """Return three quarters of the clients on the changing adapter, the rest on what stays."""
    others = options.clients // 4
    return SwapSettings(
        num_hot=options.clients - others,
        num_steady=others - 2 * (others // 3),
        num_other=others // 3,
        num_base=others // 3,
        num_publishes=options.publishes,
        period_seconds=options.period,
        num_rounds=options.rounds,
        vocab_size=shape.vocab_size,
        has_fresh_prompts=options.fresh_prompts,
        # In the peft format an adapter of the 8B shape carries a whole layer: 0.4 GB.
        other_format="peft" if options.model == "tiny" else "paper",
    )


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Serve, stream, publish; return the report."""
    shape = shape_of(options)
    settings = settings_of(options, shape)
    formats = ["paper"] if settings.other_format == "paper" else ["paper", "peft"]
    with canary_server(
        work / "server", shape=shape, formats=formats, engine_options=engine_options(options)
    ) as server:
        result = SwapRun(server.url, server.base, server.root, settings).run(work / "load")
    return {
        "command": " ".join(["python", "benchmarks/hot_swap.py", *sys.argv[1:]]),
        "environment": environment(),
        "shape": dataclasses.asdict(shape),
        "adapter_bytes": sum(f.stat().st_size for f in (server.root / "hot-0").iterdir()),
        "settings": dataclasses.asdict(settings),
        "result": result.summary(),
        "examples": {
            name: [dataclasses.asdict(record) for record in getattr(result, name)()[:3]]
            for name in _PROBLEMS
        },
    }


def main() -> int:
    """Measure, print and judge."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="hot-swap-") as temporary:
        report = measure(options, options.work or Path(temporary))
    text = json.dumps(report, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n")
    result = report["result"]
    max_ratio = options.max_ratio or (1.1 if has_gpu() else 1.3)
    is_right = all(result[name] == 0 for name in _PROBLEMS)
    return 0 if is_right and result["itl_p99_ratio"] <= max_ratio else 1


if __name__ == "__main__":
    sys.exit(main())
