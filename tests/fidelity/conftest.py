"""Fixtures of the fidelity suite: engine environment and the report of measured deviations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_session import engine_environment  # noqa: F401

HERE = Path(__file__).parent


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
    yield figures
    chosen = request.config.getoption("fidelity_report", default=None)
    path = Path(chosen) if chosen else tmp_path_factory.getbasetemp() / "fidelity_report.json"
    path.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
