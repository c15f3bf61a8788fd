"""The steps of the Dockerfile: run for real where a machine may, otherwise asked what they would do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chart import Release
from source_tree import ROOT


def step(name: str, *words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable} | settings
    return subprocess.run(
        [ROOT / ".docker" / name, *map(str, words)],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )


@pytest.fixture
def interpreter(tmp_path):
    """Return a maker of stand-in interpreters."""

    def make(script: str) -> str:
        path = tmp_path / "python3"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def without_nvcc(tmp_path):
    """Return the settings of a machine that has no CUDA compiler."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "env", "sh"):
        [found] = [p for p in ("/bin/" + name, "/usr/bin/" + name) if os.path.exists(p)][:1]
        (programs / name).symlink_to(found)
    return {"PATH": str(programs), "CUDA_HOME": str(tmp_path / "none")}


def test_user_is_the_charts():
    number = Release().pod["securityContext"]["runAsUser"]

    lines = step("add_user.sh", DRY_RUN="1").stdout.splitlines()

    assert lines[0] == f"groupadd --gid {number} shadowserve"
    assert lines[1].startswith(f"useradd --uid {number} --gid {number} ")
    assert lines[2].endswith(" /var/lib/shadowserve /var/cache/shadowserve")


def test_system_packages_leave_no_lists_behind():
    lines = step("install_system.sh", DRY_RUN="1").stdout.splitlines()

    assert lines == [
        "apt-get update",
        "apt-get install --yes --no-install-recommends g++ libnuma1",
        "rm -rf /var/lib/apt/lists",
    ]


def test_kernels_are_built_with_the_compiler_of_torchs_cuda(interpreter, without_nvcc):
    python = interpreter("echo 13-0")

    lines = step("build_kernels.sh", DRY_RUN="1", PYTHON=python, **without_nvcc).stdout.splitlines()

    assert lines == [
        "apt-get update",
        "apt-get install --yes --no-install-recommends cuda-nvcc-13-0 cuda-cudart-dev-13-0",
        f"env PYTHONPATH=kernels {python} -m shadow_kernels.build",
    ]


def test_a_compiler_that_is_there_is_taken(interpreter, without_nvcc, tmp_path):
    nvcc = tmp_path / "none/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(mode=0o755)
    python = interpreter("exit 1")

    lines = step("build_kernels.sh", DRY_RUN="1", PYTHON=python, **without_nvcc).stdout.splitlines()

    assert lines == [f"env PYTHONPATH=kernels {python} -m shadow_kernels.build"]


def test_torch_without_cuda_ends_the_build(interpreter, without_nvcc):
    done = step("build_kernels.sh", PYTHON=interpreter("echo"), **without_nvcc)

    assert done.returncode == 1
    assert "is built without CUDA" in done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = step("build_wheel.sh", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_wheel_is_installed_beside_the_engine_that_is_there(wheels):
    # pip resolves everything and stops before it changes this environment; an engine that would move is an error.
    done = step("install_wheel.sh", wheels, PIP_DRY_RUN="1", PIP_NO_INDEX="1")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Would install shadowserve-")
    assert "torch" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("count", [0, 2])
def test_one_wheel_is_installed_or_none(tmp_path, count):
    for number in range(count):
        (tmp_path / f"shadowserve-{number}-py3-none-any.whl").touch()

    done = step("install_wheel.sh", tmp_path, DRY_RUN="1")

    assert done.returncode == 1
    assert "holds no wheel of shadowserve, or several" in done.stderr
