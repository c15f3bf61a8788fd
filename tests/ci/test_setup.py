"""Set-up refuses what cannot work with one line that says what to do, before it downloads anything."""

import os
import subprocess
from pathlib import Path

import pytest

from source_tree import ROOT


def set_up(venv: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "VENV": str(venv), "ENGINE": "cpu"} | settings
    return subprocess.run(
        [ROOT / ".ci/setup.sh"],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


@pytest.fixture
def interpreter(tmp_path: Path):
    """Return a maker of stand-in interpreters that exit with a status for each piece of code they are given."""

    def make(name: str, script: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_unfit_interpreter_is_named(tmp_path: Path, interpreter):
    old = interpreter("python3.8", "exit 1")

    result = set_up(tmp_path / "venv", PYTHON=old)

    assert result.returncode == 1
    assert (
        result.stderr == f"setup: PYTHON={old} does not run or is not Python 3.11, 3.12 or 3.13\n"
    )


def test_missing_venv_module_says_what_to_install(tmp_path: Path, interpreter):
    bare = interpreter("python3.12", 'case "$*" in *ensurepip*) exit 1 ;; esac')

    result = set_up(tmp_path / "venv", PYTHON=bare)

    assert result.returncode == 1
    assert "apt-get install python3.12-venv" in result.stderr


def test_unknown_engine_is_refused(tmp_path: Path):
    result = set_up(tmp_path / "venv", ENGINE="tpu")

    assert result.returncode == 1
    assert result.stderr == "setup: ENGINE is 'tpu'; it must be auto, cpu or gpu\n"


# Makes an environment with itself as the interpreter, and notes what pip is told.
INSTALLER = """case "$*" in
  "-m venv"*) mkdir -p "$VENV/bin" && cp "$0" "$VENV/bin/python" ;;
  "-m pip"*) echo "$*" >>"$VENV/../pip" ;;
  "-") cat >/dev/null ;;
esac"""


@pytest.mark.parametrize(
    ("purpose", "wanted"), [("development", "-e .[server] --group dev"), ("image", ".[server]")]
)
def test_an_image_gets_the_package_alone(tmp_path: Path, interpreter, purpose: str, wanted: str):
    venv = tmp_path / "venv"

    result = set_up(venv, PYTHON=interpreter("python3", INSTALLER), PURPOSE=purpose)

    assert result.returncode == 0, result.stderr
    told = (tmp_path / "pip").read_text().splitlines()[-1]
    assert told.endswith(f"-c {venv}/constraints.txt {wanted}")


def test_unknown_purpose_is_refused(tmp_path: Path):
    result = set_up(tmp_path / "venv", PURPOSE="fun")

    assert result.returncode == 1
    assert result.stderr == "setup: PURPOSE is 'fun'; it must be development or image\n"


def test_refusal_leaves_no_stamp(tmp_path: Path, interpreter):
    set_up(tmp_path / "venv", PYTHON=interpreter("python3", "exit 1"))

    assert not (tmp_path / "venv/.setup-stamp").exists()
