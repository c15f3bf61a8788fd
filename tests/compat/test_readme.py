"""Every command of the README, run in its order against the demo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = _BLOCK.findall((ROOT / "README.md").read_text())


def run(kind: str, block: str, url: str, scratch: Path) -> str:
    """Run a block in the project's folder, as a reader would beside a serving demo; return what it printed."""
    text = block.replace("http://localhost:8000", url)
    # curl's status says nothing of the answer's, unless it is asked to.
    program = f'set -eu\ncurl() {{ command curl --fail-with-body -sS "$@"; }}\n{text}'
    (scratch / "example.py").write_text(text)
    python = [sys.executable, str(scratch / "example.py")]
    command = ["bash", "-c", program] if kind == "sh" else python
    folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SHADOW_SERVER_URL": url,
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_two_commands_are_the_two_that_continuous_integration_runs():
    """What sets itself up cannot run inside a test: `.ci/run` is `make test`, and tests/ci runs the demo's set-up."""
    (block,) = [block for _, block in BLOCKS if block.startswith("make ")]
    targets = [line.split()[1] for line in block.splitlines()]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: setup\n" in makefile for target in targets)


def test_every_block_runs_and_says_what_the_readme_is_about(real, tmp_path):
    url = real.process.url
    said = [run(*block, url, tmp_path) for block in BLOCKS if not block[1].startswith("make ")]
    assert len(said) >= 5
    whole = "\n".join(said)
    assert "le vieux renard voit un petit chien" in whole
    assert "THE OLD FOX SEES A SMALL DOG!" in whole
