"""Fixtures of the engine suite: the environment of real engines, and this folder's markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_session import engine_environment  # noqa: F401

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests: they start engines, whose libraries warn on import."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.filterwarnings("ignore"))
