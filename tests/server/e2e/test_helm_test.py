"""The chart's `helm test` against the real server: it loads the demo's adapter and gets its answer to the letter."""

import json
import subprocess
import sys

import pytest

from shadow_server.demo import demo_model_path
from shadow_server.demo_command import BASE_NAME
from source_tree import ROOT

pytestmark = pytest.mark.engine


def test_helm_test_passes_on_the_demo(server, tmp_path):
    declared = tmp_path / "adapters.json"
    declared.write_text(json.dumps([{"name": "shout", "path": "shout"}]))

    done = subprocess.run(
        [
            sys.executable,
            ROOT / "helm/files/smoke_test.py",
            f"--url={server.process.url}",
            f"--model={BASE_NAME}",
            f"--adapters={declared}",
            f"--demo={demo_model_path().parent}",
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    french, shout, last = done.stdout.splitlines()
    assert french.startswith("french: ")
    assert shout == "shout: answers"
    assert last == "passed"
