"""What importing a package drags in, and how long it takes: each import happens in a fresh interpreter."""

import resource
import subprocess
import sys

import pytest

CLIENT_BUDGET_SECONDS = 0.250
HEAVY = {"torch", "transformers", "vllm"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nsys.stdout.write('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=120
    )
    return set(result.stdout.split())


def start_seconds(statement: str) -> float:
    """Return the best of five starts of an interpreter that runs `statement`, in processor time.

    A clock on the wall would count what else the machine does.
    """
    return min(_start_seconds_once(statement) for _ in range(5))


def _start_seconds_once(statement: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


@pytest.mark.parametrize(
    "module",
    [
        "shadow_client",
        "shadow_runtime",
        "shadow_runtime.config",
        "shadow_runtime.errors",
        "shadow_runtime.plugin",
        "shadow_runtime.registry",
        "shadow_runtime.types",
        "shadow_server",
    ],
)
def test_import_loads_nothing_heavy(module: str):
    assert modules_after(f"import {module}") & HEAVY == set()


def test_kernels_load_without_the_engine():
    assert modules_after("import shadow_kernels") & {"transformers", "vllm"} == set()


def test_heavy_imports_are_noticed():
    assert "torch" in modules_after("import torch")


def test_client_loads_within_its_budget():
    assert start_seconds("import shadow_client") - start_seconds("pass") < CLIENT_BUDGET_SECONDS
