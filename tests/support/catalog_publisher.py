"""A process that publishes to one name as fast as it can: `catalog_publisher.py URL FIRST_SEED COUNT`.

It says `ready` once its modules are imported, begins when its input ends, and writes the versions that it got.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from catalog_model import BASE, perform
from shadow_runtime.catalog import Catalog

NAME = "contended"


def publish_many(catalog: Catalog, seeds: Sequence[int]) -> list[int]:
    """Publish each seed under the one name; return the versions."""
    return [perform(catalog, ("publish", NAME, seed)) for seed in seeds]


def publish_from_processes(url: str, num_processes: int, count: int) -> list[list[int]]:
    """Run that many processes at once on a database that may be new; return what each got."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, url, str(1000 * (n + 1)), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            text=True,
        )
        for n in range(num_processes)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.close()
        return [_result(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()


def _result(process: subprocess.Popen[str]) -> list[int]:
    text = process.stdout.read()
    assert process.wait(timeout=120) == 0
    return json.loads(text)


def main(url: str, first_seed: int, count: int) -> None:
    print("ready", flush=True)
    sys.stdin.read()
    catalog = Catalog.open(url, BASE)
    try:
        print(json.dumps(publish_many(catalog, range(first_seed, first_seed + count))))
    finally:
        catalog.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
