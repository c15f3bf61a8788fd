"""Print what a decode step's kernels take on the device, from what `serving.py --profile FOLDER` wrote.

    python benchmarks/profile_report.py FOLDER              every case, each engine over the base
    python benchmarks/profile_report.py FOLDER --kernels 12 and the kernels that take most of a step
    python benchmarks/profile_report.py FOLDER --norm 'fused_add_rms_norm_2|add_rms_norm_kernel'
                                                            and what a boundary adds: the time from the end of the
                                                            kernel in front of it to that of the norm behind it, or
                                                            its own where it does the norm itself

A step ends with the sampler's kernel (`--sampler`). It is timed from its first kernel to its last matrix product, which
is the LM head: what follows and what comes before waits for the host and says nothing about the kernels. A kernel that
starts while another one runs counts once in the step and fully in its own row. The first steps are left out, they
prefill. Durations in microseconds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from contestant import KernelRun

SAMPLER = "gumbel"
PRODUCT = r"nvjet|gemm|cutlass|slot_linear|dense_linear"
COPIES = re.compile(r"^Mem(cpy|set)")
BOUNDARY = "boundary_"
BASE = "base"


@dataclass(frozen=True)
class Profile:
    """The decode steps of one case on one engine.

    Attributes:
        steps: each step's kernels, from its first one to the LM head.
    """

    steps: list[list[KernelRun]]

    @property
    def step_us(self) -> float:
        """The median step."""
        return statistics.median(
            max(k.end_us for k in step) - step[0].start_us for step in self.steps
        )

    def norm_us(self, norm: str) -> float:
        """The median time from the end of the kernel in front of a boundary and its norm to their end.

        A boundary may do the norm itself. Without boundaries, and in front of the first layer, norms count alone; where
        there are boundaries, only what holds one counts.
        """
        crossings = [crossing for step in self.steps for crossing in _find_crossings(step, norm)]
        with_boundary = [c for c in crossings if any(BOUNDARY in run.name for run in c[1:])]
        times = [c[-1].end_us - c[0].end_us for c in with_boundary or crossings]
        return statistics.median(times) if times else float("nan")

    def totals(self) -> dict[str, tuple[float, float]]:
        """Return microseconds and launches of each kernel in a step, the means over the steps."""
        times: dict[str, list[float]] = defaultdict(list)
        for run in (run for step in self.steps for run in step):
            times[run.name].append(run.duration_us)
        num_steps = len(self.steps)
        return {name: (sum(t) / num_steps, len(t) / num_steps) for name, t in times.items()}


def _find_crossings(step: list[KernelRun], norm: str) -> list[list[KernelRun]]:
    """Return each boundary with the norm (a regular expression) behind it, the kernel in front of both first."""
    is_part = [BOUNDARY in run.name or bool(re.search(norm, run.name)) for run in step]
    found = []
    for first in range(1, len(step)):
        if is_part[first] and not is_part[first - 1]:
            last = next((i for i in range(first, len(step)) if not is_part[i]), len(step))
            found.append(step[first - 1 : last])
    return found


def split_steps(
    runs: Iterable[KernelRun], sampler: str, product: str, num_skipped: int
) -> list[list[KernelRun]]:
    """Cut a profile into steps.

    Args:
        runs: all kernels and copies in the order of their starts.
        sampler: part of the name of the kernel that ends a step.
        product: regular expression of the products' names; the last one in a step is the LM head.
        num_skipped: steps at the beginning that are left out.

    Returns:
        The kernels of every whole step with a product, without copies and without what follows the LM head.
    """
    steps: list[list[KernelRun]] = []
    step: list[KernelRun] = []
    is_in_sampler = False
    for run in runs:
        is_sampler = sampler in run.name
        if is_in_sampler and not is_sampler:
            steps.append(step)
            step = []
        is_in_sampler = is_sampler
        if not COPIES.search(run.name):
            step.append(run)
    if is_in_sampler:
        steps.append(step)
    bodies = (_body(step, product) for step in steps[num_skipped:])
    return [body for body in bodies if body]


def _body(step: list[KernelRun], product: str) -> list[KernelRun]:
    products = [index for index, run in enumerate(step) if re.search(product, run.name)]
    return step[products[0] : products[-1] + 1] if products else []


def read_profile(path: Path, sampler: str, product: str, num_skipped: int) -> Profile:
    """Read one case of one engine; raises ValueError where it holds no whole step."""
    runs = [KernelRun(*words) for words in json.loads(path.read_text())]
    steps = split_steps(runs, sampler, product, num_skipped)
    if not steps:
        raise ValueError(f"{path} holds no step that ends with a kernel named '{sampler}'")
    return Profile(steps)


def find_cases(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the files of decode cases: case, engine, path."""
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*-decode-*.json")):
        engine, case = path.stem.split("-decode-")
        cases[case][engine] = path
    return cases


def report(
    case: str, profiles: dict[str, Profile], num_kernels: int, norm: str | None
) -> list[str]:
    """Return a case's lines."""
    base = profiles.get(BASE)
    lines = []
    for engine, profile in profiles.items():
        ratio = "" if base is None else f"  {profile.step_us / base.step_us:.3f} of {BASE}"
        lines.append(
            f"{case:10} {engine:14} {profile.step_us:9.1f} us a step"
            f" (median of {len(profile.steps)}){ratio}"
        )
        if norm is not None:
            lines.append(f"    {profile.norm_us(norm):9.2f} us until a norm has ended")
        longest = sorted(profile.totals().items(), key=lambda item: -item[1][0])[:num_kernels]
        lines += [f"    {us:9.1f} us in {num:6.1f} launches  {name}" for name, (us, num) in longest]
    return lines


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="of each engine")
    parser.add_argument("--norm", help="part of the name of the norm behind a boundary")
    parser.add_argument("--sampler", default=SAMPLER, help="part of the name that ends a step")
    parser.add_argument("--product", default=PRODUCT, help="regular expression of products' names")
    parser.add_argument("--skip", type=int, default=2, metavar="N", help="first steps left out")
    options = parser.parse_args()
    cases = find_cases(options.folder)
    if not cases:
        print(f"{options.folder} holds no profile of a decode case", file=sys.stderr)
        return 1
    for case, paths in cases.items():
        profiles = {
            engine: read_profile(path, options.sampler, options.product, options.skip)
            for engine, path in paths.items()
        }
        print("\n".join(report(case, profiles, options.kernels, options.norm)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
