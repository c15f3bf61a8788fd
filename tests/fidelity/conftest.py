"""Fixtures of the fidelity suite: engine environment and the report of measured deviations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_session import engine_environment  # noqa: F401

HERE = Path(__file__).parent
FIGURES = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the report's file."""
    parser.addoption(
        "--fidelity-report", default=None, help="write measured deviations to this JSON file"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests: they start engines, whose libraries warn on import."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def fidelity_report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Collect figures under a key per test; written as JSON when the session ends."""
    figures: dict[str, Any] = {}
    request.config.stash[FIGURES] = figures
    yield figures
    chosen = request.config.getoption("fidelity_report", default=None)
    path = Path(chosen) if chosen else tmp_path_factory.getbasetemp() / "fidelity_report.json"
    path.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """State the largest deviation of every group of measurements."""
    groups: dict[str, list[float]] = {}
    for key, figure in config.stash.get(FIGURES, {}).items():
        if not key.startswith("margins/"):
            groups.setdefault("/".join(key.split("/")[:2]), []).extend(_numbers(figure))
    if groups:
        terminalreporter.section("largest difference of logprobs")
    for name, numbers in sorted(groups.items()):
        terminalreporter.write_line(f"{name:<40} {max(numbers):.1e}")


def _numbers(figure: Any) -> list[float]:
    if isinstance(figure, dict):
        return [number for part in figure.values() for number in _numbers(part)]
    return [float(figure)]
