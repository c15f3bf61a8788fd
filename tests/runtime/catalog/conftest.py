"""Every test of the catalog runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog_model import BASE
from postgres import postgres_server, postgres_url  # noqa: F401
from shadow_runtime.catalog import Catalog


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def open_catalog(database_url: str) -> Iterator[Callable[[], Catalog]]:
    """Give an opener of the database: each call is another server's catalog."""
    opened: list[Catalog] = []

    def open_one() -> Catalog:
        opened.append(Catalog.open(database_url, BASE))
        return opened[-1]

    yield open_one
    for catalog in opened:
        catalog.close()


@pytest.fixture
def catalog(open_catalog: Callable[[], Catalog]) -> Catalog:
    """Give a catalog of an empty database."""
    return open_catalog()
