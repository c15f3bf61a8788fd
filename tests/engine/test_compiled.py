"""Engines that compile as on a GPU answer as eager ones do, also with what an earlier start compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine_session import ENVIRONMENT

SCRIPT = Path(__file__).parents[1] / "support" / "compiled_engine.py"
MOST_DIFFERENCE = 1e-3
"""Of a whole answer's sum of logprobs, in fp32."""

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def answers(mode: str, cache: Path) -> list[list[object]]:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), mode, str(cache)],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    spoken: list[list[object]] = json.loads(result.stdout.splitlines()[-1])
    return spoken


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    return answers("eager", tmp_path_factory.mktemp("eager"))


def test_compiled_engines_answer_as_eager_ones(tmp_path: Path, eager: list[list[object]]) -> None:
    texts = {(name, text) for name, text, _ in eager}
    assert len(texts) == len(eager), "the adapters are to be told apart"
    for _ in ("cold", "with what the first start compiled"):
        compiled = answers("compiled", tmp_path)
        assert [row[:2] for row in compiled] == [row[:2] for row in eager]
        for (_, _, ours), (_, _, theirs) in zip(compiled, eager, strict=True):
            assert ours == pytest.approx(theirs, abs=MOST_DIFFERENCE)
    compiled_code = [path.read_text() for path in tmp_path.rglob("*.py")]
    assert any("boundary_rms_norm_" in code for code in compiled_code), "the norm stayed"
    for name in ("dense_linear", "add_rms_norm_", "silu_and_mul"):
        assert any(f"shadow.{name}" in code for code in compiled_code), f"no {name}"
