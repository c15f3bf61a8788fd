"""The report on a step's kernels: where a step begins and ends, and what it adds up to."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/profile_report.py"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("profile_report")


def write_steps(path, *, layer_us, num_steps=5, boundary_us=0.0):
    """Write steps of two layers, each a product and perhaps a boundary, an LM head and two sampler kernels."""
    runs, now = [], 100.0

    def add(name, duration):
        nonlocal now
        runs.append((name, now, duration))
        now += duration

    for number in range(num_steps):
        add("Memcpy HtoD", 50.0)
        add("gather_positions", 7.0)
        for _ in range(2):
            add("nvjet_layer", layer_us * (9 if number == 0 else 1))  # a prefill takes longer
            if boundary_us:
                add("boundary_token_kernel", boundary_us)
        add("nvjet_head", 10.0)
        add("_argmax", 3.0)
        add("_gumbel_sample_kernel", 2.0)
        add("_gumbel_reduce", 2.0)
        now += 1000.0  # the host
    path.write_text(json.dumps(runs))


def test_a_step_runs_from_the_first_product_to_the_lm_head(tool, tmp_path):
    write_steps(tmp_path / "base-decode-1x1.json", layer_us=20.0)
    profile = tool.read_profile(tmp_path / "base-decode-1x1.json", "gumbel", tool.PRODUCT, 2)
    assert len(profile.steps) == 3
    assert profile.step_us == pytest.approx(50.0)
    assert profile.totals() == {"nvjet_layer": (40.0, 2.0), "nvjet_head": (10.0, 1.0)}


def test_overlapping_kernels_count_once_in_the_step(tool):
    runs = [
        tool.KernelRun("nvjet_a", 0.0, 10.0),
        tool.KernelRun("boundary", 8.0, 6.0),
        tool.KernelRun("nvjet_head", 13.0, 7.0),
        tool.KernelRun("_gumbel", 20.0, 1.0),
    ]
    steps = tool.split_steps(runs, "gumbel", tool.PRODUCT, 0)
    assert tool.Profile(steps).step_us == 20.0


def test_an_unfinished_step_is_left_out(tool):
    runs = [tool.KernelRun("nvjet_a", 0.0, 1.0), tool.KernelRun("_gumbel", 1.0, 1.0)]
    rest = [tool.KernelRun("nvjet_a", 2.0, 900.0)]
    assert tool.split_steps(runs + rest, "gumbel", tool.PRODUCT, 0) == [runs[:1]]


def test_a_boundary_costs_what_it_delays_the_norm_behind_it(tool):
    def steps(boundary_us):
        start = 10.0 if boundary_us else 0.0
        runs = [tool.KernelRun("nvjet_a", start, 5.0)]
        if boundary_us:  # begins before the product has ended, and the norm before the boundary has
            runs.append(
                tool.KernelRun("shadow::boundary_token_kernel", start + 4.0, 1.0 + boundary_us)
            )
        runs.append(tool.KernelRun("add_rms_norm_2", start + 5.5, 2.0 + boundary_us))
        runs.append(tool.KernelRun("nvjet_head", start + 8.0 + boundary_us, 3.0))
        return tool.Profile([runs])

    assert steps(0.0).norm_us("norm_2") == pytest.approx(2.5)
    assert steps(6.0).norm_us("norm_2") == pytest.approx(8.5)
    (line,) = [x for x in tool.report("1x1", {"base": steps(0.0)}, 0, "norm_2") if "norm" in x]
    assert line.split() == ["2.50", "us", "until", "a", "norm", "has", "ended"]


def test_the_command_compares_engines_case_by_case(tmp_path):
    write_steps(tmp_path / "base-decode-8x8.json", layer_us=20.0)
    write_steps(tmp_path / "shadow-decode-8x8.json", layer_us=20.0, boundary_us=2.5)
    write_steps(tmp_path / "lora-best-decode-8x8.json", layer_us=45.0)
    (tmp_path / "shadow-prefill-8x8.json").write_text("[]")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--kernels", "1"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "8x8 base 50.0 us a step (median of 3) 1.000 of base",
        "40.0 us in 2.0 launches nvjet_layer",
        "8x8 lora-best 100.0 us a step (median of 3) 2.000 of base",
        "90.0 us in 2.0 launches nvjet_layer",
        "8x8 shadow 55.0 us a step (median of 3) 1.100 of base",
        "40.0 us in 2.0 launches nvjet_layer",
    ]


def test_a_folder_or_file_without_steps_is_refused(tool, tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no profile of a decode case" in result.stderr
    (tmp_path / "base-decode-1x1.json").write_text('[["nvjet", 0.0, 1.0]]')
    with pytest.raises(ValueError, match="holds no step"):
        tool.read_profile(tmp_path / "base-decode-1x1.json", "gumbel", tool.PRODUCT, 0)
