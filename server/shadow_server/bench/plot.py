"""A picture of a report.

Runs in: the command's own process. Needs matplotlib, which nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SHOWN = {
    "median_itl_ms": "ITL p50",
    "p99_itl_ms": "ITL p99",
    "median_ttft_ms": "TTFT p50",
    "p99_ttft_ms": "TTFT p99",
}


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw each case's latencies over the base's to a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = report["cases"]
    figure, axes = pyplot.subplots(figsize=(max(6, len(cases)), 4.5), layout="constrained")
    width = 0.8 / len(_SHOWN)
    for place, (key, label) in enumerate(_SHOWN.items()):
        at = [index - 0.4 + (place + 0.5) * width for index in range(len(cases))]
        axes.bar(at, [case["ratios"][key] or 0 for case in cases], width, label=label)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(cases)), [c["name"] for c in cases], rotation=45, ha="right")
    axes.set_ylabel("time / base")
    axes.set_title(f"{report['model_id']}, {cases[0]['max_concurrency']} clients")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
