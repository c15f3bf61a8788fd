"""The import contracts of pyproject.toml hold, and each of them turns red when somebody crosses it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from source_tree import ROOT, SOURCE_ROOTS

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

CROSSINGS = {
    "layers": ("kernels/shadow_kernels/segments.py", "import shadow_runtime"),
    "runtime-layers": ("shadow_runtime/config.py", "import shadow_runtime.vllm_bridge"),
    "vllm-bridge": ("shadow_runtime/slots/layout.py", "import vllm"),
    "kernels-alone": ("kernels/shadow_kernels/segments.py", "import transformers"),
    "client-alone": ("clients/shadow_client/__init__.py", "import shadow_runtime.types"),
    "values-without-torch": ("shadow_runtime/types.py", "import torch"),
    "server-engine": ("server/shadow_server/errors.py", "import torch"),
    "oracles-for-tests": (
        "kernels/shadow_kernels/dispatch.py",
        "import shadow_kernels.ops.boundary.reference",
    ),
}


def lint_imports(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    roots = (tree / parent.relative_to(ROOT) for parent in SOURCE_ROOTS.values())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    return subprocess.run(
        [LINT_IMPORTS, "--no-cache", *options],
        cwd=tree,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    for name, parent in SOURCE_ROOTS.items():
        folder = (parent / name).relative_to(ROOT)
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold():
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout
    assert f"Contracts: {len(CROSSINGS)} kept, 0 broken" in result.stdout


@pytest.mark.parametrize("contract", CROSSINGS)
def test_crossing_breaks_the_contract(contract: str, copied_tree: Path):
    file, statement = CROSSINGS[contract]
    path = copied_tree / file
    path.write_text(f"{path.read_text()}\n{statement}\n")

    result = lint_imports(copied_tree, "--contract", contract)

    assert "1 broken" in result.stdout, result.stdout + result.stderr
