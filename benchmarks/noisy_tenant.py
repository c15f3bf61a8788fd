"""A tenant at ten times its quota beside a steady one: what the steady one notices, and how soon the other is refused.

    python benchmarks/noisy_tenant.py                      a tiny base on a CPU
    python benchmarks/noisy_tenant.py --rounds 8 --out result.json
    python benchmarks/noisy_tenant.py --requests-per-minute 240 --max-concurrent 4 --request-burst 240
                                                           what larger quotas cost
    python benchmarks/noisy_tenant.py --model 8b           the shape of Qwen3-8B on a GPU

Starts a server with tenants and the clients in processes of their own. The steady tenant sends at fixed instants;
windows with and without the noisy one alternate, and the noisy one begins some time before each of its own. Exits with
1 when an answer of the steady tenant is missing or wrong, or the ratio of its p99 TTFT beside the noisy one to that
alone is over `--max-ratio`.
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

from canary_model import add_options, engine_options, formats_of, shape_of  # noqa: E402
from environment import environment  # noqa: E402

from noisy_tenant_run import NoiseRun, NoiseSettings  # noqa: E402
from tenant_server import NUMBERS, tenant_server  # noqa: E402

SERVER_OPTIONS = ("--max-num-seqs", "32")


def parse() -> argparse.Namespace:
    """Read the command line."""
    defaults = NoiseSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=defaults.num_rounds)
    parser.add_argument("--window", type=float, default=defaults.window_seconds, help="seconds")
    parser.add_argument(
        "--requests-per-minute", type=int, default=defaults.requests_per_minute, help="its quota"
    )
    parser.add_argument(
        "--request-burst", type=int, default=defaults.request_burst, help="its quota, too"
    )
    parser.add_argument(
        "--max-concurrent", type=int, default=defaults.max_concurrent, help="its quota, too"
    )
    parser.add_argument("--excess", type=int, default=defaults.excess, help="times the quota")
    parser.add_argument("--max-ratio", type=float, default=1.3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Serve and load; return the report."""
    shape = shape_of(options)
    settings = NoiseSettings(
        num_rounds=options.rounds,
        window_seconds=options.window,
        excess=options.excess,
        requests_per_minute=options.requests_per_minute,
        request_burst=options.request_burst,
        max_concurrent=options.max_concurrent,
        vocab_size=shape.vocab_size,
    )
    with tenant_server(
        work / "server",
        settings=settings,
        shape=shape,
        formats=formats_of(options),
        engine_options=engine_options(options, *SERVER_OPTIONS),
    ) as tenants:
        run = NoiseRun(tenants.server.url, tenants.keys, NUMBERS, settings)
        result = run.run(work / "load")
    return {
        "command": " ".join(["python", "benchmarks/noisy_tenant.py", *sys.argv[1:]]),
        "environment": environment(),
        "shape": dataclasses.asdict(shape),
        "settings": dataclasses.asdict(settings),
        "result": result.summary(),
    }


def main() -> int:
    """Measure, print and judge."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="noisy-tenant-") as temporary:
        report = measure(options, Path(temporary))
    text = json.dumps(report, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n")
    steady = report["result"]["steady"]
    is_right = steady["failed"] == 0 and steady["ttft_p99_ratio"] <= options.max_ratio
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
