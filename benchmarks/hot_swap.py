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

from canary_model import (  # noqa: E402
    add_options,
    engine_options,
    formats_of,
    has_gpu,
    shape_of,
)
from environment import environment  # noqa: E402

from canary_server import canary_server  # noqa: E402
from hot_swap_run import SwapRun, SwapSettings  # noqa: E402
from version_canary import CanaryShape  # noqa: E402

_PROBLEMS = ("failed", "mixed", "misnamed", "stale", "premature")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
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
    return parser.parse_args()


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
        other_format=formats_of(options)[-1],
    )


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Serve, stream, publish; return the report."""
    shape = shape_of(options)
    settings = settings_of(options, shape)
    sizes = ("--max-num-seqs", str(options.clients + 16))
    cpu_sizes = ("--max-num-batched-tokens", "2048")
    with canary_server(
        work / "server",
        shape=shape,
        formats=formats_of(options),
        engine_options=engine_options(options, *sizes, cpu_defaults=cpu_sizes),
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
