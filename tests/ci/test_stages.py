"""Stages all run, the verdict of each is printed, and one failure fails the whole."""

import subprocess

from source_tree import ROOT


def run_stages(*lines: str) -> subprocess.CompletedProcess[str]:
    script = "\n".join(["set -euo pipefail", f"source {ROOT}/.ci/stages.sh", *lines, "finish"])
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, check=False, text=True, timeout=60
    )


def test_all_stages_pass():
    result = run_stages("stage first true", "stage second true")

    assert result.returncode == 0
    assert result.stdout.count("ok\n") == 2


def test_failed_stage_fails_the_run_after_the_others_ran():
    result = run_stages("stage first false", "stage second echo reached")

    assert result.returncode == 1
    assert "reached" in result.stdout
    assert "FAILED (1)" in result.stdout
    assert result.stderr == "failed: first\n"


def test_stage_does_not_read_the_terminal():
    assert run_stages("stage read cat").returncode == 0
